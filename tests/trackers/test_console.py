import io
import re
import time

from rich.console import Console

from priml.trackers.console import ProgressConsole, counted

SHOWN = {f"metric/{i}": f"a long label number {i}" for i in range(8)} | {"eval/greedy": "held-out"}


def show(*, terminal, records, done=0):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
    progress = ProgressConsole("train", total=12, done=done, shown=SHOWN, console=console)
    for record in records:
        progress.log(record)
    progress.close()
    return out.getvalue()


def test_off_a_terminal_a_step_is_one_line_however_long():
    numbers = {f"metric/{i}": 1234.5678 for i in range(8)}
    text = show(terminal=False, records=[{"step": 12, "ignored": 1.0, **numbers}])
    assert len(text.splitlines()) == 1
    assert text.startswith("train 12/12  a long label number 0 1235  ")
    assert len(text.splitlines()[0]) > 80


def test_off_a_terminal_quick_steps_are_not_all_printed_but_evaluations_and_the_last_are(monkeypatch):
    now = iter([*range(100, 112)])  # a second a step
    monkeypatch.setattr("priml.trackers.console.time.monotonic", lambda: float(next(now, 112)))
    monkeypatch.setattr("priml.trackers.console.threading.Thread.start", lambda self: None)
    records = [{"step": step} | ({"eval/greedy": 0.5} if step == 3 else {}) for step in range(1, 13)]
    shown = [line.split()[1] for line in show(terminal=False, records=records).splitlines()]
    assert shown == ["1/12", "3/12", "8/12", "12/12"]


def test_a_number_that_was_not_measured_in_a_step_is_not_in_its_line():
    text = show(terminal=False, records=[{"step": 0, "eval/greedy": 0.25}, {"step": 12, "metric/0": 3.14159}])
    assert text.splitlines() == ["train 0/12  held-out 0.25", "train 12/12  a long label number 0 3.14"]


def test_on_a_bar_an_older_number_has_its_step_and_the_phase_stands_beside_it():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    progress = ProgressConsole("train", total=592, shown=SHOWN, console=console)
    progress.show_phase(lambda: "sample 34 s")
    progress.log({"step": 0, "eval/greedy": 0.25})
    progress.log({"step": 57, "metric/0": 3.14159})
    progress.close()
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out.getvalue())
    bar, below = text.rstrip().splitlines()[-2:]
    assert re.fullmatch(r"train \S+ +57/592 0:\d\d:\d\d left \S+ *", bar), "whole at 80 columns"
    assert below.rstrip() == "a long label number 0 3.14  held-out 0.25 (step 0)  now: sample 34 s"


def test_a_long_silence_is_broken_by_what_is_being_done(monkeypatch):
    monkeypatch.setattr("priml.trackers.console.SILENCE_S", 0.01)
    out = io.StringIO()
    progress = ProgressConsole("train", total=9, shown={}, console=Console(file=out))
    progress.show_phase(lambda: "sample 31 s")
    deadline = time.monotonic() + 60
    while "now" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    progress.close()
    assert out.getvalue().splitlines()[0] == "train 0/9  now: sample 31 s"


def test_work_that_is_counted_shows_how_much_is_done():
    out = io.StringIO()
    with counted("responses", 8, console=Console(file=out)) as advance:
        for count in (3, 5):
            advance(count)
    assert out.getvalue().splitlines()[-1].rstrip() == "responses 8/8"


def test_on_a_terminal_there_is_a_bar_with_time_left_that_starts_where_the_run_resumed():
    text = show(terminal=True, records=[{"step": 6, "eval/greedy": 0.5}], done=5)
    assert "6/12" in text
    assert "left" in text
    assert "held-out 0.5" in text


def test_markup_in_what_is_said_is_text():
    out = io.StringIO()
    ProgressConsole("[bold]a[/bold] [/nonsense]", total=1, shown={}, console=Console(file=out)).log({"step": 1})
    assert out.getvalue() == "[bold]a[/bold] [/nonsense] 1/1  \n"
