"""`priml runs`: which runs there are, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from priml.errors import UsageError
from priml.report.settings import changed_settings
from priml.runs.folder import RunFolder
from priml.runs.overview import Overview, find_runs, read_overview

_COLUMNS = ("run", "state", "step", "before", "after", "fresh", "begun")
_WIDE = 110
"""Columns from which on there is room for intervals."""
_METRICS = ("outcome/mean", "prm/auc", "prm/pair_accuracy", "prm/trust", "policy/entropy", "response/length_mean")


def list_runs(below: Path) -> list[Overview]:
    """The runs in a folder, the newest last.

    Raises:
        UsageError: there is no such folder, or no run in it.
    """
    found = [read_overview(folder) for folder in find_runs(below)]
    if not found:
        raise UsageError(f"{below}: found no run in it, need a folder that holds run folders")
    return sorted(found, key=lambda run: (run.created, str(run.folder)))


def runs_table(runs: Sequence[Overview], below: Path, *, width: int = 120) -> str:
    """The runs as text, a line each."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in _COLUMNS:
        table.add_column(name, no_wrap=name in ("run", "state", "begun"))
    for run in runs:
        table.add_row(*(Text(cell, overflow="fold") for cell in _cells(run, below, is_wide=width >= _WIDE)))
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _cells(run: Overview, below: Path, *, is_wide: bool) -> Iterator[str]:
    yield str(run.folder.path.relative_to(below))
    yield run.state
    yield f"{run.step}/{run.steps}" if run.steps and run.step >= 0 else "" if run.step < 0 else str(run.step)
    for scores in (run.before, run.after):
        yield _interval(scores) if is_wide or scores is None else f"{scores['mean']:.3f}"
    fresh = run.metrics.get("outcome/mean")
    yield "" if fresh is None else f"{fresh:.3f}"
    yield _local(run.created)


def show_run(folder: RunFolder) -> str:
    """One run: state, accuracy, settings that are not the defaults, last metrics, and what to type next.

    Raises:
        UsageError: the folder is none of a run.
    """
    run = read_overview(folder)
    lines = [f"{folder}: priml {run.command}, {run.state}" + (f" after step {run.step}" if run.step >= 0 else "")]
    if run.steps:
        lines[0] += f" of {run.steps}"
    lines.append(f"begun {_local(run.created)}")
    if run.before:
        lines.append(f"held-out greedy: {_interval(run.before)} -> {_interval(run.after) or 'not evaluated again'}")
    shown = [f"{name} {run.metrics[name]:.3g}" for name in _METRICS if name in run.metrics]
    if shown:
        lines.append("last step: " + "  ".join(shown))
    alarms = sorted(name.removeprefix("alarm/") for name in run.metrics if name.startswith("alarm/"))
    if alarms:
        lines.append(f"alarms at the last step: {', '.join(alarms)}")
    lines += [
        "settings that are not the defaults:",
        *(f"  {line}" for line in changed_settings(run.command, run.settings)),
    ]
    return "\n".join([*lines, f"next: {run.next_command}"])


def _interval(scores: Mapping[str, float] | None) -> str:
    return "" if scores is None else f"{scores['mean']:.3f} [{scores['low']:.3f}, {scores['high']:.3f}]"


def _local(created: str) -> str:
    """A moment in this machine's time."""
    return f"{datetime.strptime(created, '%Y-%m-%dT%H:%M:%SZ').replace(tzinfo=UTC).astimezone():%Y-%m-%d %H:%M}"
