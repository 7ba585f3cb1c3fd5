import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from priml.errors import UsageError
from priml.report.logs import read_run
from priml.report.page import MAX_WATERFALLS, report_data, write_report

MakeRun = Callable[..., Path]
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(block: str) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(base64.b64decode(block)))


def test_the_page_tells_the_whole_run(make_run: MakeRun):
    path = write_report(make_run(steps=6))
    assert path.name == "report.html"
    page = path.read_text(encoding="utf-8")
    data = _data(page)
    assert "<title>demo · priml report</title>" in page
    assert (
        data["headline"]
        == "Greedy accuracy rose from 21.4\N{NO-BREAK SPACE}% to 76.4\N{NO-BREAK SPACE}% (+55.0 points)"
    )
    assert any("do not overlap" in line for line in data["details"])
    assert any("1 verdict was undecided" in line for line in data["details"])
    facts = dict(data["facts"])
    assert facts["Started"] == "2026-01-02 03:04"
    assert facts["Policy"] == "models/sft"
    assert facts["Seed"] == "3"
    assert facts["Estimator"] == "rloo, preset authors"
    assert facts["beta"] == "auto (1.51)"
    assert facts["Device"] == "kind cpu, precision fp32"
    assert facts["Versions"] == "priml 0.1.0, torch 2.13.0"
    assert [row["name"] for row in data["accuracy"]] == ["Greedy", "Sampled", "pass@4"]
    assert data["notes"] == []
    assert list(path.parent.glob("*.partial")) == []


def test_the_page_needs_no_network_and_the_policy_forbids_it(make_run: MakeRun):
    page = write_report(make_run(steps=2)).read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href|url)\s*[=(]\s*([^\s>]+)", page.split('id="data"')[0]) == ['"data:,"']
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = found[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    for source in (*scripts, *styles):
        assert base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() in policy
    assert "The MIT License" in scripts[0]


def test_what_a_model_wrote_cannot_leave_its_data_block(make_run: MakeRun):
    page = write_report(make_run(steps=1)).read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("</script>") == 2
    blocks = _data(page)["table"]["inside"]["blocks"]
    texts = [one["texts"]["response"] for block in blocks.values() for one in unpacked(block)]
    assert any(text.endswith(HOSTILE) for text in texts)


def test_the_name_of_the_folder_is_escaped(make_run: MakeRun, tmp_path: Path):
    run = make_run(steps=1).rename(tmp_path / "<b>&run")
    page = write_report(run).read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;&amp;run · priml report</title>" in page
    assert "<b>&run" not in page


def test_a_run_with_metrics_alone_gets_a_page_that_says_what_is_missing(make_run: MakeRun):
    data = _data(write_report(make_run(steps=6, parts=("metrics.jsonl",))).read_text(encoding="utf-8"))
    assert data["headline"].startswith("Greedy held-out accuracy went from")
    assert len(data["notes"]) == 5
    assert data["accuracy"] == []
    assert data["table"]["total"] == 0
    assert dict(data["facts"])["Steps"] == "6"


def test_a_run_with_nothing_recorded_yet_gets_a_page(make_run: MakeRun):
    data = _data(write_report(make_run(parts=("config.yaml", "manifest.json"))).read_text(encoding="utf-8"))
    assert data["headline"] == "Nothing was recorded yet"


def test_an_unfinished_run_says_where_it_stands(make_run: MakeRun):
    run = make_run(steps=6)
    (run / "config.yaml").write_text("steps: 40\n")
    (run / "summary.json").unlink()
    assert "Step 6 of 40 is the last on record." in report_data(read_run(run))["details"]


def test_an_outcome_only_run_speaks_of_no_process_reward(make_run: MakeRun):
    data = report_data(read_run(make_run(steps=3, prm=False)))
    assert dict(data["facts"])["PRM"] == "none (outcomes only)"
    assert "beta" not in dict(data["facts"])
    assert data["table"]["is_outcome_only"]
    assert data["table"]["strange"] == []


def test_a_damaged_rollout_file_is_a_note(make_run: MakeRun):
    run = make_run(steps=3)
    (run / "rollouts" / "000003.parquet").write_bytes(b"PAR1 half")
    data = report_data(read_run(run))
    assert data["table"]["total"] == 2 * 7 * 4
    assert any("000003.parquet cannot be read" in note for note in data["notes"])


def test_a_missing_tokenizer_is_said(make_run: MakeRun):
    data = report_data(read_run(make_run(steps=1, parts=("config.yaml", "rollouts"))))
    assert any("tokenizer.json" in note for note in data["notes"])


def test_a_custom_reward_function_is_named_and_no_model_is_spoken_of(make_run: MakeRun):
    run = make_run(steps=3, prm=False)
    (run / "config.yaml").write_text("steps: 3\nprm: {kind: custom, function: 'my.py:rewards'}\n")
    data = report_data(read_run(run))
    assert dict(data["facts"])["PRM"] == "custom: my.py:rewards"
    assert "beta" not in dict(data["facts"])
    section = next(section for section in data["sections"] if section["title"] == "Process reward model")
    assert "my.py:rewards" in section["lead"]
    assert not section["charts"]
    assert not section["missing"]


def _accuracy(before: tuple[float, float, float], after: tuple[float, float, float]) -> str:
    def score(mean: float, low: float, high: float) -> dict[str, Any]:
        return {"greedy": {"mean": mean, "low": low, "high": high, "n": 100}}

    return json.dumps({"accuracy": {"before": score(*before), "after": score(*after)}})


@pytest.mark.parametrize(
    ("after", "verb", "certainty"),
    [
        ((0.9, 0.8, 0.95), "rose from", "do not overlap"),
        ((0.55, 0.45, 0.65), "rose from", "may be chance"),
        ((0.2, 0.1, 0.3), "fell from", "do not overlap"),
        ((0.5, 0.4, 0.6), "stayed at", "may be chance"),
    ],
)
def test_the_verdict_is_no_kinder_than_the_intervals(
    make_run: MakeRun, after: tuple[float, float, float], verb: str, certainty: str
):
    run = make_run(steps=2)
    (run / "summary.json").write_text(_accuracy((0.5, 0.4, 0.6), after))
    data = report_data(read_run(run))
    assert verb in data["headline"]
    assert certainty in data["details"][0]


def test_a_prm_below_chance_is_called_worse_and_one_at_chance_no_better(tmp_path: Path):
    for values, expected in (
        ([0.4] * 20, "worse than chance"),
        ([0.35, 0.64] * 10, "no better than chance, and its loss is above ln 2"),
    ):
        rows = ({"step": i, "prm/pair_accuracy": value, "prm/loss": 0.8} for i, value in enumerate(values, 1))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert any(expected in line for line in report_data(read_run(tmp_path))["details"])


def test_alarms_and_settings_are_on_the_page(make_run: MakeRun):
    run = make_run(steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "alarm/length": 1}\n')
    data = report_data(read_run(run))
    assert [alarm["name"] for alarm in data["alarms"]] == ["length"]
    assert "sampling.group_size: 4" in data["settings"]
    assert data["table"]["trust"]["responses"] == 60


def test_waterfalls_are_thinned_between_first_and_last(tmp_path: Path):
    spans = ({"step": i, "role": "r", "phase": "sample", "start": i, "end": i + 0.5} for i in range(1, 201))
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(span) + "\n" for span in spans))
    steps = [int(step) for step in report_data(read_run(tmp_path))["time"]["waterfalls"]]
    assert len(steps) == MAX_WATERFALLS
    assert (steps[0], steps[-1]) == (1, 200)


def test_a_folder_that_is_no_run_gets_no_page(tmp_path: Path):
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_report_imports_neither_torch_nor_transformers():
    code = "import sys, priml.report.page; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"prm": False}, {"parts": ("metrics.jsonl",)}, {"steps": 1}])
def test_a_browser_draws_the_page_without_a_word_on_its_console(
    make_run: MakeRun, tmp_path: Path, options: dict[str, Any]
):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    path = write_report(make_run(**options))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [chromium, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    dom = done.stdout.split("<script")[0]
    assert "<canvas" in dom
    assert "<img" not in dom
    has_rollouts = "parts" not in options
    assert ('class="tabulator-row' in dom) == has_rollouts
    has_rewards = has_rollouts and options.get("prm", True) and options.get("steps") != 1
    assert ("total reward" in dom) == has_rewards


def test_a_supervised_run_shows_its_loss_and_nothing_it_never_had(tmp_path: Path):
    run = tmp_path / "sft"
    run.mkdir()
    (run / "config.yaml").write_text("model: {kind: tiny, width: 16}\nepochs: 1\n")
    (run / "manifest.json").write_text('{"format": 2, "kind": "sft"}')
    rows = [
        {"step": s, "sft/loss": 4.0 / s, "sft/lr_scale": 1.0, "sft/grad_norm": 0.5, "time/step": 0.1} for s in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text('{"steps": 2, "seconds": 0.2, "tokens": {"trained": 9}}')
    data = report_data(read_run(run))
    assert data["headline"] == "The loss per response token went from 4 to 2 in 2 steps"
    assert data["is_supervised"]
    assert data["notes"] == []
    assert [chart["title"] for part in data["sections"] for chart in part["charts"]] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
    ]
    assert dict(data["facts"])["Model"] == "kind tiny, width 16"
    assert write_report(run).is_file()
