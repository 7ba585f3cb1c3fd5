"""What a person sees while a run goes on: progress, time left and the numbers that matter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressConsole:
    """A progress bar on a terminal, one line per reported step elsewhere (logs stay readable)."""

    def __init__(self, title: str, *, total: int, done: int = 0, shown: Mapping[str, str]) -> None:
        """`shown` maps metric names to the short labels printed beside the bar."""
        self._console = Console(stderr=True)
        self._shown = dict(shown)
        self._title = title
        self._total = total
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._progress.start()
            self._task = self._progress.add_task(title, total=total, completed=done, numbers="")
        self._latest: dict[str, float] = {}

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Show one step."""
        self._latest |= {k: float(v) for k, v in metrics.items() if k in self._shown}
        numbers = "  ".join(f"{self._shown[k]} {_short(self._latest[k])}" for k in self._shown if k in self._latest)
        step = int(metrics["step"])
        if self._progress is not None:
            self._progress.update(self._task, completed=step, numbers=numbers)
        else:
            self._console.print(f"{self._title} {step}/{self._total}  {numbers}", highlight=False, markup=False)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
