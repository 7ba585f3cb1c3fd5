import json
from collections.abc import Callable
from pathlib import Path

import pytest

from priml.errors import UsageError
from priml.report.logs import RunLog, read_run

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


def test_a_run_of_an_older_priml_is_refused(make_run):
    run = make_run()
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["format"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"has format 1 \(of priml 0\.1\), need format 2; finish the run with priml"):
        read_run(run)
