"""The share of a step that a pool of processes was idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BusyTime:
    """Adds up reported seconds of work."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._done: list[tuple[float, float]] = []
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """A process has just finished so many seconds of work."""
        with self._lock:
            self._done.append((self._now(), seconds))

    def idle_share(self, elapsed_s: float, *, processes: int) -> float:
        """Mean share of the last `elapsed_s` seconds in which a process was idle. Resets the sum.

        Work that ended earlier (an evaluation, a checkpoint) does not count.
        """
        began = self._now() - elapsed_s
        with self._lock:
            done, self._done = self._done, []
        worked = sum(seconds for end, seconds in done if end >= began)
        return min(1.0, max(0.0, 1.0 - worked / (elapsed_s * processes)))
