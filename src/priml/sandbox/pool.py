"""A sandbox on this machine: one zygote per core starts programs behind one level of isolation."""

from __future__ import annotations

import logging
import os
import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from priml.sandbox.base import Limits, SandboxLost, SandboxResult
from priml.sandbox.levels import Level
from priml.sandbox.running import Running
from priml.sandbox.worker import Worker

_log = logging.getLogger(__name__)
# A program that names one of these is forked from a zygote that has imported it, or what it is made of. Any other is
# forked from a zygote of a sixth of the size, in a third of the time. A wrong guess costs nothing but time.
_HEAVY = re.compile(r"\b(?:numpy|sympy|scipy|pandas|sklearn)\b")


class LocalSandbox:
    """Implements `Sandbox`. At most `workers` programs of `run` go at once; the others wait before their clock starts.

    Sessions do not wait: they last as long as the caller likes, and one thread may need two.
    """

    def __init__(self, level: Level, *, workers: int | None = None) -> None:
        self._level = level
        self._size = workers or len(os.sched_getaffinity(0))
        self._turn = threading.BoundedSemaphore(self._size)
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _close_all, self._workers)
        self._workers.append(Worker(level))
        about = self._workers[0].ready()
        landlock = f"Landlock ABI {about['landlock']}" if about["landlock"] else "no Landlock in this kernel"
        self.level = f"{level.description}; {landlock}; seccomp; {self._size} workers"

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that exist now."""
        return tuple(worker.pid for worker in self._workers)

    def run(self, code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
        """See `Sandbox`."""
        with self._turn, self._worker() as worker:
            return worker.start(code, stdin, limits, talks=False, heavy=_is_heavy(code)).wait()

    def open(self, code: str, *, limits: Limits = Limits(), upcoming: str | None = None) -> Running:  # noqa: B008
        """See `Sandbox`."""
        heavy = upcoming is None or _is_heavy(upcoming) or _is_heavy(code)
        with self._worker() as worker:
            return worker.start(code, "", limits, talks=True, heavy=heavy)

    def close(self) -> None:
        """See `Sandbox`."""
        self._finalizer()

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """The one with the fewest programs, a new one while all are busy; lost ones are replaced."""
        with self._lock:
            worker = self._choose()
            while worker.is_lost():
                self._drop(worker)
                worker = self._choose()
        try:
            yield worker
        except SandboxLost:
            with self._lock:
                self._drop(worker)
            raise

    def _choose(self) -> Worker:
        assert self._finalizer.alive, "the sandbox is closed"
        worker = min(self._workers, key=lambda worker: worker.num_programs, default=None)
        if worker is None or (worker.num_programs and len(self._workers) < self._size):
            worker = Worker(self._level)
            self._workers.append(worker)
        return worker

    def _drop(self, worker: Worker) -> None:
        """The next program that finds the others busy starts another."""
        if worker in self._workers:  # not dropped by another thread already
            self._workers.remove(worker)
            _log.warning("sandbox: a worker was lost: %s", worker.stop_and_read_error())
            worker.close()


def _is_heavy(code: str) -> bool:
    return _HEAVY.search(code) is not None


def _close_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().close()
