"""Timing from outside: objects are wrapped, so that the code being timed stays free of clocks."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from priml.training.watchdog import beat

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of one role, in seconds since the clock was made."""

    step: int
    role: str
    phase: str
    start: float
    end: float


class Clock:
    """Collects spans; time spent in a nested span counts for the inner phase only."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._origin = now()
        self._spans: list[Span] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        """Guards what follows and precedes: sampling may have a thread of its own."""
        self._open: dict[object, tuple[str, float]] = {}
        """Phase and start of the spans that have not ended."""
        self._thread = _Thread()
        self.step = 0

    @contextmanager
    def span(self, role: str, phase: str) -> Iterator[None]:
        """Time a block."""
        start, key = self._now(), object()
        beat(phase)
        nested = self._thread.nested
        nested.append(0.0)
        with self._lock:
            self._open[key] = phase, start - self._origin
        try:
            yield
        finally:
            with self._lock:
                del self._open[key]
            end = self._now()
            beat(f"after {phase}")
            inner = nested.pop()
            if nested:
                nested[-1] += end - start
            self.add(role, phase, start, end, end - start - inner)

    def add(self, role: str, phase: str, start: float, end: float, seconds: float) -> None:
        """A span of work beside the timed calls, measured elsewhere with the same `now`. `seconds` of it count for the
        phase."""
        with self._lock:
            self._seconds[phase] += seconds
            self._spans.append(Span(self.step, role, phase, start - self._origin, end - self._origin))

    def wrap(
        self, target: T, role: str, phases: Mapping[str, str], *, before_update: Callable[[], None] = lambda: None
    ) -> T:
        """The same object, with the named methods timed as the given phases; `before_update` is called before the
        method of that name."""
        return _Timed(target, self, role, phases, before_update)  # pyright: ignore[reportReturnType]

    def hidden(self, phase: str, *, behind: str) -> float:
        """Seconds of a phase since the last `take` in which a span of the phase `behind` was open as well."""
        with self._lock:
            ended = [(span.phase, span.start, span.end) for span in self._spans]
            cover = [(start, end) for name, start, end in ended if name == behind]
            cover += [(start, float("inf")) for name, start in self._open.values() if name == behind]
        covered = 0.0
        for _, start, end in (span for span in ended if span[0] == phase):
            reached = start  # spans that cover the same seconds count once
            for first, last in sorted(cover):
                covered += max(0.0, min(last, end) - max(first, reached))
                reached = max(reached, min(last, end))
        return covered

    def current(self) -> str:
        """The phase that began last of those that go on, and for how long: `sample 34 s`. Empty between them."""
        with self._lock:
            if not self._open:
                return ""
            phase, start = max(self._open.values(), key=lambda one: one[1])
        return f"{phase} {self._now() - self._origin - start:.0f} s"

    def take(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Seconds per phase and the spans since the last call."""
        with self._lock:
            seconds, spans = dict(self._seconds), [asdict(span) for span in self._spans]
            self._seconds.clear()
            self._spans.clear()
        return seconds, spans


class _Thread(threading.local):
    """What a clock knows of each thread."""

    def __init__(self) -> None:
        self.nested: list[float] = []
        """Of each open span the seconds that went to spans inside."""


class _Timed:
    """Stands in for an object and times some of its methods (or its call, as `__call__`)."""

    def __init__(
        self, target: object, clock: Clock, role: str, phases: Mapping[str, str], before_update: Callable[[], None]
    ) -> None:
        self._target: Any = target
        self._clock = clock
        self._role = role
        self._phases = phases
        self._before_update = before_update

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        phase = self._phases.get(name)
        if phase is None:
            return attribute

        def timed(*args: object, **kwargs: object) -> Any:
            if name == "update":
                self._before_update()
            with self._clock.span(self._role, phase):
                return attribute(*args, **kwargs)

        return timed

    def __call__(self, *args: object, **kwargs: object) -> Any:
        with self._clock.span(self._role, self._phases["__call__"]):
            return self._target(*args, **kwargs)
