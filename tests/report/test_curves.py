import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from priml.errors import UsageError
from priml.report.curves import OTHER, RunLog, ranges, read_run, sections, time_chart, time_shares

MakeRun = Callable[..., Path]


def test_a_finished_run_is_read_whole_and_nothing_is_missing(make_run: MakeRun):
    log = read_run(make_run(steps=6))
    assert log.notes == ()
    assert [m["step"] for m in log.metrics] == list(range(7))
    assert log.steps_done == 6
    assert list(log.spans) == [1, 2, 3, 4, 5, 6]
    assert [p.stem for p in log.rollouts] == [f"{i:06d}" for i in range(1, 7)]
    assert not log.is_outcome_only


def test_every_missing_part_is_named(make_run: MakeRun):
    notes = " ".join(read_run(make_run(parts=("metrics.jsonl",))).notes)
    for name in ("config.yaml", "manifest.json", "summary.json", "spans.jsonl", "rollout files"):
        assert name in notes


def test_a_folder_that_is_no_run_is_refused_with_what_was_looked_for(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"not a run folder.*config\.yaml.*metrics\.jsonl.*summary\.json"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        read_run(tmp_path / "nowhere")


def test_a_cut_last_line_is_skipped_and_said(make_run: MakeRun):
    run = make_run(steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "outcome/me')
    log = read_run(run)
    assert log.steps_done == 4
    assert any("last line of metrics.jsonl is incomplete" in note for note in log.notes)


def test_a_damaged_line_in_the_middle_is_named_by_its_number(make_run: MakeRun):
    run = make_run(steps=4)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:2], "garbage", "[1]", *lines[2:]]) + "\n")
    log = read_run(run)
    assert log.steps_done == 4
    assert any("2 unreadable lines" in note and "line 3" in note for note in log.notes)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "summary.json"])
def test_a_damaged_document_is_a_note_and_not_a_failure(make_run: MakeRun, name: str):
    run = make_run(steps=2)
    (run / name).write_text('{"half": [1, ')
    assert any(f"{name} cannot be read" in note for note in read_run(run).notes)


def _make_log(tmp_path: Path, *rows: str) -> RunLog:
    (tmp_path / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
    return read_run(tmp_path)


def test_a_step_written_again_after_a_resume_counts_once(tmp_path: Path):
    log = _make_log(tmp_path, '{"step": 1, "a": 1}', '{"step": 2, "a": 2}', '{"step": 2, "a": 3}')
    assert log.column("a") == [(1, 1), (2, 3)]


def test_numbers_that_are_not_finite_and_texts_are_not_drawn(tmp_path: Path):
    log = _make_log(tmp_path, '{"step": 1, "a": NaN, "b": Infinity, "digest/policy": "ab", "c": true, "d": 1}')
    assert dict(log.metrics[0]) == {"step": 1, "d": 1}


def test_spans_of_the_later_attempt_at_a_step_count(tmp_path: Path):
    def line(step: int, phase: str, start: float, end: float) -> str:
        return json.dumps({"step": step, "role": "r", "phase": phase, "start": start, "end": end}) + "\n"

    (tmp_path / "spans.jsonl").write_text(
        line(1, "sample", 5, 6) + line(2, "sample", 7, 9) + line(3, "lost", 9, 12)  # then the process died ...
        + line(2, "sample", 1, 2) + line(2, "prm", 2, 4) + line(3, "sample", 4, 5)  # ... and resumed from step 1
    )  # fmt: skip
    spans = read_run(tmp_path).spans
    assert [(s.phase, s.start, s.end) for s in spans[2]] == [("sample", 0, 1), ("prm", 1, 3)]
    assert [s.phase for s in spans[3]] == ["sample"]


def test_the_curves_show_chance_and_ln_2_beside_the_prm(make_run: MakeRun):
    charts = {c.title: c for section in sections(read_run(make_run(steps=3))) for c in section.charts}
    rules = {s.label: s.values[0] for c in charts.values() for s in c.series if s.kind == "rule"}
    assert rules["chance"] == 0.5
    assert rules["ln 2"] == pytest.approx(math.log(2))
    assert [s.label for s in charts["PRM loss"].series] == ["loss", "ln 2"]


def test_evaluations_keep_their_own_steps(make_run: MakeRun):
    charts = {c.title: c for section in sections(read_run(make_run(steps=9))) for c in section.charts}
    chart = charts["Held-out accuracy"]
    assert chart.steps == (0, 4, 8)
    greedy, sampled = chart.series
    assert greedy.values[0] == 0.21
    assert sampled.values == (0.18, None, None)
    assert charts["Outcome of sampled responses"].steps == tuple(range(1, 10))


def test_outcomes_by_source_have_charts_of_their_own(tmp_path: Path):
    log = _make_log(
        tmp_path,
        '{"step": 0, "eval/greedy": 0.2, "eval/greedy/math": 0.1, "eval/greedy/code": 0.3}',
        '{"step": 1, "outcome/mean": 0.5, "outcome/mean/math": 0.4, "outcome/mean/code": 0.6}',
    )
    charts = {c.title: {s.label: s.values for s in c.series} for c in sections(log)[0].charts}
    assert charts["Held-out accuracy"] == {"greedy": (0.2,)}
    assert charts["Held-out accuracy by source, greedy"] == {"code": (0.3,), "math": (0.1,)}
    assert charts["Outcome of sampled responses by source"] == {"code": (0.6,), "math": (0.4,)}
    assert "Held-out accuracy by source, sampled" not in charts


def test_idle_processes_are_shown_where_roles_have_processes(tmp_path: Path):
    idle = {"idle/trainer": 0.6, "idle/sampler": 0.4, "idle/verifier": 0.9}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "outcome/mean": 0.5, **idle}) + "\n")
    cluster = sections(read_run(tmp_path))[-1]
    assert (cluster.title, [chart.title for chart in cluster.charts]) == ("Cluster", ["Idle processes"])
    assert {series.label: series.values for series in cluster.charts[0].series} == {
        "trainer": (0.6,),
        "sampler": (0.4,),
        "verifier": (0.9,),
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "outcome/mean": 0.5}) + "\n")
    assert "Cluster" not in [section.title for section in sections(read_run(tmp_path))]


def test_an_outcome_only_run_has_no_prm_charts_and_says_why(make_run: MakeRun):
    prm = next(s for s in sections(read_run(make_run(steps=3, prm=False))) if s.title == "Process reward model")
    assert prm.charts == ()
    assert prm.missing == ()
    assert "outcomes alone" in prm.lead


def test_what_was_not_recorded_is_listed_by_title(tmp_path: Path):
    found = {s.title: s for s in sections(_make_log(tmp_path, '{"step": 1, "policy/entropy": 0.5}'))}
    assert [c.title for c in found["Policy"].charts] == ["Entropy"]
    assert "PRM loss" in found["Process reward model"].missing


def test_time_adds_up_with_an_explicit_remainder(tmp_path: Path):
    log = _make_log(
        tmp_path,
        '{"step": 1, "time/policy": 2, "time/sample": 5, "time/verify_overlapped": 4, "time/step": 8}',
        '{"step": 2, "time/policy": 2, "time/sample": 4, "time/step": 6, "time/evaluate": 6}',
    )
    shares = {s.phase: (s.seconds, s.share) for s in time_shares(log)}
    assert list(shares) == ["sample", "policy", OTHER, "evaluate"]
    assert shares == {"sample": (9, 0.45), "policy": (4, 0.2), OTHER: (1, 0.05), "evaluate": (6, 0.3)}
    chart = time_chart(log)
    assert chart is not None
    assert {s.label: s.values for s in chart.series} == {"sample": (5, 4), "policy": (2, 2), OTHER: (1, 0)}


def test_what_goes_on_beside_training_is_no_part_of_a_step(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "time/step": 10, "time/collect": 2, "time/snapshot": 1, "time/policy": 4, "time/prm": 1, '
        '"time/prm_hidden": 1, "time/sample": 8, "time/verify": 3, "time/sync": 1, "time/sampler_waited": 2}\n'
    )
    log = read_run(tmp_path)
    shares = {share.phase: share.seconds for share in time_shares(log)}
    assert shares == {"collect": 2, "snapshot": 1, "policy": 4, "prm": 1, OTHER: 2}
    chart = time_chart(log)
    assert chart is not None
    assert "sampled meanwhile" in chart.caption


def test_no_times_no_chart(tmp_path: Path):
    log = _make_log(tmp_path, '{"step": 1, "policy/entropy": 0.5}')
    assert time_chart(log) is None
    assert time_shares(log) == ()


def test_ranges_cover_every_metric(tmp_path: Path):
    log = _make_log(tmp_path, '{"step": 1, "a": 3}', '{"step": 2, "a": 1, "b": 7}', '{"step": 3, "a": 2}')
    assert [(r.key, r.first, r.last, r.low, r.high) for r in ranges(log)] == [("a", 3, 2, 1, 3), ("b", 7, 7, 7, 7)]


def test_a_run_of_an_older_priml_is_refused(make_run):
    run = make_run()
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["format"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"has format 1 \(of priml 0\.1\), need format 2; finish the run with priml"):
        read_run(run)
