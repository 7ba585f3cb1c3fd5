import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from priml.files import append_lines
from priml.trackers import JsonlTracker, ProgressConsole


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


SHOWN = {f"metric/{i}": f"a long label number {i}" for i in range(8)} | {"eval/greedy": "held-out"}


def show(*, terminal, records, done=0):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
    progress = ProgressConsole("train", total=12, done=done, shown=SHOWN, console=console)
    for record in records:
        progress.log(record)
    progress.close()
    return out.getvalue()


def test_off_a_terminal_each_step_is_one_line_however_long():
    numbers = {f"metric/{i}": 1234.5678 for i in range(8)}
    text = show(terminal=False, records=[{"step": step, "ignored": 1.0, **numbers} for step in (1, 2)])
    assert len(text.splitlines()) == 2
    assert text.startswith("train 1/12  a long label number 0 1235  ")
    assert len(text.splitlines()[0]) > 80


def test_numbers_measured_now_and_then_keep_their_latest_value():
    text = show(terminal=False, records=[{"step": 0, "eval/greedy": 0.25}, {"step": 1, "metric/0": 3.14159}])
    assert text.splitlines() == ["train 0/12  held-out 0.25", "train 1/12  a long label number 0 3.14  held-out 0.25"]


def test_on_a_terminal_there_is_a_bar_with_time_left_that_starts_where_the_run_resumed():
    text = show(terminal=True, records=[{"step": 6, "eval/greedy": 0.5}], done=5)
    assert "6/12" in text
    assert "left" in text
    assert "held-out 0.5" in text


def test_markup_in_what_is_said_is_text():
    out = io.StringIO()
    ProgressConsole("[bold]a[/bold] [/nonsense]", total=1, shown={}, console=Console(file=out)).log({"step": 1})
    assert out.getvalue() == "[bold]a[/bold] [/nonsense] 1/1  \n"
