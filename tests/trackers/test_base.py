import json
import math
from pathlib import Path

import pytest

from priml.files import append_lines
from priml.trackers.base import JsonlTracker


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
