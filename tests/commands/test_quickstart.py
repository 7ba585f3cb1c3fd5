import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes import messages
from priml.commands.quickstart import run_quickstart
from priml.errors import UsageError

TASK = {"kind": "chain", "length": 3, "modulus": 5}
FILES: dict[str, dict[str, Any]] = {
    "sft.yaml": {
        "run_dir": "unused",
        "model": {"kind": "tiny", "width": 16, "layers": 1, "heads": 2},
        "data": TASK | {"count": 64},
        "epochs": 1,
        "batch": 32,
    },
    "train.yaml": {
        "run_dir": "unused",
        "steps": 3,
        "policy": {"model": "unused"},
        "sampling": {"group_size": 2, "max_new_tokens": 8},
        "batch": {"prompts": 2},
        "filter": None,
        "data": {"train": TASK | {"count": 16}},
        "evaluate": {"data": TASK | {"split": "held_out", "count": 8}, "samples": 2},
        "checkpoint": {"every": 1, "keep": 3},
    },
    "eval.yaml": {
        "run_dir": "unused",
        "model": "unused",
        "data": {"held_out": TASK | {"split": "held_out", "count": 10}},
        "samples": 2,
        "max_new_tokens": 8,
    },
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An example folder like examples/laptop-math, of a second's work."""
    folder = tmp_path_factory.mktemp("example")
    for name, settings in FILES.items():
        (folder / name).write_text(yaml.safe_dump(settings))
    return folder


def quickstart(out: Path, seed: int, example: Path) -> list[str]:
    """Its lines."""
    with messages() as said:
        table = run_quickstart(out, seed, example=example)
    return [*said, *table.splitlines()]


@pytest.fixture(scope="module")
def finished(example: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished quickstart and what it said. Tests copy it before they change anything."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return out, quickstart(out, 3, example)


def test_it_runs_all_phases_into_one_folder(finished: tuple[Path, list[str]]):
    out, _ = finished
    for made in (
        "sft/model/config.json",
        "model/config.json",
        "prm/config.json",
        "outcome_only/model/config.json",
        "eval/eval.json",
        "report.html",
    ):
        assert (out / made).is_file(), made


def test_the_seed_is_that_of_every_phase_and_the_task_stays_the_same(finished: tuple[Path, list[str]]):
    out, _ = finished
    for folder in ("sft", ".", "outcome_only", "eval"):
        recorded = yaml.safe_load((out / folder / "config.yaml").read_text())
        assert recorded["seed"] == 3
    assert recorded["data"]["held_out"]["seed"] == 0


def test_it_says_accuracy_before_and_after_time_and_report(finished: tuple[Path, list[str]]):
    out, said = finished
    text = "\n".join(said)
    assert "before (SFT)              8" in text
    assert "after (PRIME)             8" in text
    assert "after (prm=null)          8" in text
    assert "PRIME, fresh             10" in text
    assert "sampled in training: 12 responses with PRIME, 12 without" in text
    before, after = (json.loads((out / "summary.json").read_text())["accuracy"][end] for end in ("before", "after"))
    gain = 100 * (after["greedy"]["mean"] - before["greedy"]["mean"])
    without = json.loads((out / "outcome_only" / "summary.json").read_text())["accuracy"]["after"]
    more = 100 * (after["greedy"]["mean"] - without["greedy"]["mean"])
    assert f"greedy: PRIME {gain:+.1f} points" in text
    assert f" against SFT, {more:+.1f} points" in text
    assert "time: SFT " in text
    assert f"report: {out}/report.html" in text
    assert "again from the start: remove" in text


def test_a_finished_quickstart_shows_its_table_again_and_runs_nothing(
    finished: tuple[Path, list[str]], example: Path, tmp_path: Path
):
    out, first = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    said = quickstart(out, 3, example)
    assert said == first[-len(said) :]
    assert not any(line[1:3] == "/4" for line in said)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"report.html"}


def test_an_interrupted_training_is_resumed(finished: tuple[Path, list[str]], example: Path, tmp_path: Path):
    uninterrupted, _ = finished
    out = tmp_path / "out"
    quickstart(out, 3, example)
    # As if it had been stopped after step 1: the later checkpoints and all results are gone.
    for gone in ("model", "prm", "eval", "checkpoints/000002", "checkpoints/000003"):
        shutil.rmtree(out / gone)
    (out / "summary.json").unlink()
    (out / "quickstart.json").write_text('{"SFT": 1.0}')
    said = quickstart(out, 3, example)
    assert [line[:3] for line in said if line[1:3] == "/4"] == ["2/4", "4/4"]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (uninterrupted, out)]
    assert weights[0] == weights[1]


def test_an_interrupted_sft_is_resumed(finished: tuple[Path, list[str]], example: Path, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(finished[0] / "sft", out / "sft")
    recorded = (out / "sft" / "config.yaml").read_text()
    (out / "sft" / "config.yaml").write_text(recorded.replace(str(finished[0]), str(out)))
    # As if it had been stopped before its first checkpoint.
    for gone in ("model", "checkpoints"):
        shutil.rmtree(out / "sft" / gone)
    (out / "sft" / "summary.json").unlink()
    said = quickstart(out, 3, example)
    assert said[0].startswith("1/4 SFT")
    assert "resuming after step 0 of 2" in said
    weights = [(folder / "sft" / "model" / "model.safetensors").read_bytes() for folder in (finished[0], out)]
    assert weights[0] == weights[1]


def test_a_folder_of_another_seed_is_refused(finished: tuple[Path, list[str]], example: Path):
    out, _ = finished
    with pytest.raises(
        UsageError, match=r"holds a run with other settings or another seed .* priml quickstart --out DIR"
    ):
        quickstart(out, 4, example)


def test_a_folder_that_is_not_ours_is_left_alone(example: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "sft").mkdir(parents=True)
    (out / "sft" / "notes.txt").write_text("mine")
    quickstart(out, 0, example)
    assert (out / "sft" / "notes.txt").read_text() == "mine"
