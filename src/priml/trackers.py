"""Where the metrics of a run go: JSON lines, and what a person sees while it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from priml.errors import UsageError
from priml.files import append_lines
from priml.plugins import naming_failures

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A sink for the metrics of a run."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics: flat, slash-separated, `step` included; nothing that is NaN."""
        ...

    def close(self) -> None: ...


class JsonlTracker:
    """Appends a line per step, so that a killed run keeps every finished one.

    No file stays open: a full disk raises in `log`, and not a second time in `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinity are refused with `ValueError`."""
        append_lines(self._path, [metrics])

    def close(self) -> None: ...


class OptionalTracker:
    """A user's tracker, which never stops the run: when it fails, that is reported once, and it gets nothing more."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        """`name` is what messages call it."""
        self._tracker: Tracker | None = tracker
        self._name = name

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Pass one step on."""
        self._try(lambda tracker: tracker.log(metrics))

    def close(self) -> None:
        """Pass it on."""
        self._try(lambda tracker: tracker.close())

    def _try(self, work: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            with naming_failures(self._name):
                work(self._tracker)
        except UsageError as error:
            self._tracker = None
            logger.warning(f"{error}; the run goes on without this tracker, and metrics.jsonl has every step")


class ProgressConsole:
    """A `Tracker` for people: a progress bar on a terminal, one line per reported step elsewhere."""

    def __init__(
        self, title: str, *, total: int, done: int = 0, shown: Mapping[str, str], console: Console | None = None
    ) -> None:
        """`shown` maps metric names to the short labels printed beside the bar. Writes to stderr if not told where."""
        self._console = console or Console(stderr=True)
        self._shown = dict(shown)
        self._title = title
        self._total = total
        self._latest: dict[str, float] = {}
        self._progress = self._bar() if self._console.is_terminal else None
        if self._progress is not None:
            self._task = self._progress.add_task(title, total=total, completed=done, numbers="")
            self._progress.start()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Show one step. Numbers that are not measured at every step keep their latest value."""
        self._latest |= {k: float(v) for k, v in metrics.items() if k in self._shown}
        numbers = "  ".join(f"{self._shown[k]} {_short(self._latest[k])}" for k in self._shown if k in self._latest)
        step = int(metrics["step"])
        if self._progress is not None:
            self._progress.update(self._task, completed=step, numbers=numbers)
        else:
            # Never wrapped: logs are searched line by line.
            text = f"{self._title} {step}/{self._total}  {numbers}"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self._console,
        )


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
