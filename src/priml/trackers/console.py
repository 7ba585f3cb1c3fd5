"""What a person sees while a run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class ProgressConsole:
    """A `Tracker` for people: a bar on a terminal, whole at 80 columns; plain lines, not too many, elsewhere."""

    def __init__(
        self, title: str, *, total: int, done: int = 0, shown: Mapping[str, str], console: Console | None = None
    ) -> None:
        """`shown` maps metric names to the short labels printed beside the bar. Writes to stderr if not told where."""
        self._console = console or Console(stderr=True)
        self._shown = dict(shown)
        self._title = title
        self._total = total
        self._step = done
        self._latest: dict[str, tuple[int, float]] = {}
        """Of each number the step that measured it last, and its value."""
        self._phase: Callable[[], str] = str
        self._printed_at = 0.0
        self._ended = threading.Event()
        self._progress = self._bar() if self._console.is_terminal else None
        if self._progress is not None:
            self._progress.add_task(title, total=total, completed=done)
            self._progress.start()
        else:
            threading.Thread(target=self._report_silence, daemon=True).start()

    def show_phase(self, phase: Callable[[], str]) -> None:
        """`phase` says what is being done at the moment, as in "sample 34 s"; empty: nothing to say."""
        self._phase = phase

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Show one step. A number that was not measured in it is shown with its step on a bar, and not in a line."""
        step = self._step = int(metrics["step"])
        self._latest |= {k: (step, float(v)) for k, v in metrics.items() if k in self._shown}
        if self._progress is not None:
            self._progress.update(self._progress.tasks[0].id, completed=step)
            return
        # Not each of hundreds of quick steps. What is measured now and then is never left out.
        now = time.monotonic()
        if now - self._printed_at >= LINE_S or step >= self._total or any(name.startswith("eval/") for name in metrics):
            self._printed_at = now
            self._print_line(f"{self._title} {step}/{self._total}  {self._numbers(step)}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._ended.set()
        if self._progress is not None:
            self._progress.stop()

    def _numbers(self, step: int) -> str:
        """The numbers of this step; on a bar also older ones, with their steps."""
        parts: list[str] = []
        for name, label in self._shown.items():
            at, value = self._latest.get(name, (None, 0.0))
            if at == step:
                parts.append(f"{label} {_short(value)}")
            elif at is not None and self._console.is_terminal:
                parts.append(f"{label} {_short(value)} (step {at})")
        return "  ".join(parts)

    def _report_silence(self) -> None:
        """A line now and then while a step takes long: nothing that works is mute."""
        began = time.monotonic()
        while not self._ended.wait(SILENCE_S):
            if time.monotonic() - max(self._printed_at, began) >= SILENCE_S and (phase := self._phase()):
                self._printed_at = time.monotonic()
                self._print_line(f"{self._title} {self._step}/{self._total}  now: {phase}")

    def _print_line(self, text: str) -> None:
        # Never wrapped: logs are searched line by line.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _below(self) -> str:
        phase = self._phase()
        return self._numbers(self._step) + (f"  now: {phase}" if phase else "")

    def _bar(self) -> Progress:
        return _BarWithText(
            self._below,
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )


class _BarWithText(Progress):
    """A bar, and below it a text that is asked for whenever the bar is painted."""

    def __init__(self, below: Callable[[], str], *columns: ProgressColumn, console: Console) -> None:
        self._below = below
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._below(), overflow="fold")


LINE_S = 5.0
"""Seconds between lines at least, where there is no terminal."""
SILENCE_S = 30.0
"""Seconds without a step after which a line says what is being done."""


@contextmanager
def counted(title: str, total: int, *, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show how much of some work is done; inside, call what it yields with how much has just been done."""
    progress = ProgressConsole(title, total=total, shown={}, console=console)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.log({"step": done})

    try:
        yield advance
    finally:
        progress.close()


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
