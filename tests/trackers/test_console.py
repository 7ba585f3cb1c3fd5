import io

from rich.console import Console

from priml.trackers.console import ProgressConsole

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
