import json
import math
from pathlib import Path

import pytest

from priml.trackers.jsonl import JsonlTracker, append_lines, keep_steps


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_record_is_on_disk_when_log_returns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in (1, 2):
        tracker.log({"step": step, "a/b": 0.5})
        assert lines(path)[-1] == {"step": step, "a/b": 0.5}
    tracker.close()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_written(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="JSON compliant"):
        append_lines(path, [{"step": 1}, {"step": 2, "x": bad}])
    assert not path.exists()


def test_steps_after_the_last_and_lines_cut_off_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 1, "again": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    keep_steps(path, 2)
    assert lines(path) == [{"step": 1}, {"step": 1, "again": 1}, {"step": 2}]


def test_a_file_that_does_not_exist_stays_so(tmp_path):
    keep_steps(tmp_path / "none.jsonl", 2)
    assert list(tmp_path.iterdir()) == []
