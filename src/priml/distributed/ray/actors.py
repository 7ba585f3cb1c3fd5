"""What samplers and verifiers in actors have in common: lost actors are replaced, and idle time is measured."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from priml.distributed.ray.cluster import Actor, fetch
from priml.errors import PrimlError

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3
"""How many actors may be lost over a piece of work before the work is thought to be the cause."""


def work_in(cwd: str) -> None:
    """Work in the driver's folder, if it exists on this node: settings may hold relative paths."""
    if Path(cwd).is_dir():
        os.chdir(cwd)


class PoolActor(Generic[T]):
    """One of a pool. Runs inside an actor.

    Of an error in an actor's constructor Ray delivers the text alone, so a `PrimlError` is kept for the first call.
    """

    def __init__(self, build: Callable[[], T], cwd: str) -> None:
        work_in(cwd)
        self._error: PrimlError | None = None
        try:
            self._value = build()
        except PrimlError as error:
            self._error = error

    @property
    def built(self) -> T:
        """What `build` returned. Raises its error."""
        if self._error is not None:
            raise self._error
        return self._value

    def pid(self) -> int:
        return os.getpid()


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


class ActorPool:
    """Actors of one kind. A lost one is replaced, and the user is told.

    Ray's `max_restarts` only runs the constructor again: a sampler would go on with the weights it started with.
    `ray.util.ActorPool` drops a lost actor, and does not say which work was lost with it.
    """

    def __init__(self, kind: str, start: Callable[[int], Actor], count: int) -> None:
        self._kind = kind
        self._start = start
        self._actors = [start(index) for index in range(count)]
        self._lock = threading.Lock()
        self.busy = BusyTime()

    @property
    def pids(self) -> list[int]:
        """Process ids, on their nodes."""
        return fetch([actor.pid.remote() for actor in self._actors])

    def _replace(self, index: int, lost: Actor) -> None:
        with self._lock:
            if self._actors[index] is lost:  # several threads may find the same one lost
                logger.info(f"{self._kind} {index} was lost; another one takes its place and its work")
                self._actors[index] = self._start(index)
