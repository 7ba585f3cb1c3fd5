"""Grade all responses of a step, each one as soon as it is sampled: the `GroupVerifier` over any `Verifier`."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from priml.graders.base import Verifier
from priml.graders.extract import opened_thought
from priml.types import Group, Prompt, Trajectory, Verdict

THREADS = 16
"""Responses that are graded at once, unless the verifier has room for more."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much grading happened during sampling. Times are those of `time.perf_counter`, in seconds."""

    start: float
    """When the first response was submitted."""
    end: float
    """When sampling was done and the pool was called."""
    seconds: float
    """How long at least one response was being graded in between."""


@dataclass(frozen=True, slots=True)
class _Grading:
    verdict: Verdict
    start: float
    end: float


class VerifierPool:
    """The `GroupVerifier` over any `Verifier`, whose `grade` it calls from several threads at once.

    A verdict does not depend on when its response was submitted. An undecided verdict has been asked for twice.
    """

    def __init__(
        self, verifier: Verifier, *, overlapped: Callable[[Overlap], None] | None = None, threads: int = THREADS
    ) -> None:
        """`threads` responses are graded at once; `overlapped` is called after each step that had submissions."""
        self._verifier = verifier
        self._overlapped = overlapped
        self._count = threads
        self._threads = _Threads(threads)
        self._submitted: dict[Trajectory, Future[_Grading]] = {}  # a trajectory is equal to itself alone
        self._first_submit: float | None = None
        self._failure: BaseException | None = None

    def submit(self, prompt: Prompt, trajectory: Trajectory) -> None:
        """Start to grade a sampled response and return at once. The next call of the pool collects the verdict.

        Raises:
            Exception: what an earlier grading raised, so that sampling ends.
        """
        if self._failure is not None:
            failure = self._failure
            self._reset()
            raise failure
        self._first_submit = self._first_submit or time.perf_counter()
        future = self._submitted[trajectory] = self._threads.submit(self._grade, prompt, trajectory)
        future.add_done_callback(self._note_failure)

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """Return the same groups with one verdict per trajectory.

        It waits for what was submitted and grades the rest. Submissions of other groups are dropped.

        Raises:
            Exception: what the verifier raised, the first in the order of the groups.
        """
        called, submitted, first_submit = time.perf_counter(), self._submitted, self._first_submit
        try:
            futures = [
                submitted.get(trajectory) or self._threads.submit(self._grade, group.prompt, trajectory)
                for group in groups
                for trajectory in group.trajectories
            ]
            gradings = [future.result() for future in futures]
        finally:
            self._reset()
        if self._overlapped is not None and first_submit is not None:
            self._overlapped(Overlap(first_submit, called, _busy_seconds(gradings, until=called)))
        verdicts = (grading.verdict for grading in gradings)
        return [replace(group, verdicts=tuple(next(verdicts) for _ in group.trajectories)) for group in groups]

    def _grade(self, prompt: Prompt, trajectory: Trajectory) -> _Grading:
        start = time.perf_counter()
        if trajectory.verdict is not None:
            return _Grading(trajectory.verdict, start, start)
        response = trajectory.text  # not before: it may have to be fetched
        # Otherwise a thought that was cut looks like an answer, also one that names its own tag.
        response = opened_thought(prompt.text) + response
        verdict = self._verifier.grade(prompt.problem, response)
        if verdict.correct is None:
            verdict = self._verifier.grade(prompt.problem, response)
        return _Grading(verdict, start, time.perf_counter())

    def _note_failure(self, future: Future[_Grading]) -> None:
        self._failure = self._failure or future.exception()

    def _reset(self) -> None:
        self._threads.end()
        self._threads = _Threads(self._count)
        self._submitted, self._first_submit, self._failure = {}, None, None


def fan_out(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `function(item)` of every item, in order. The threads only wait: for worker processes or for a service."""
    threads = _Threads(THREADS)
    try:
        futures = [threads.submit(function, item) for item in items]
        return [future.result() for future in futures]
    finally:
        threads.end()


def _busy_seconds(gradings: Sequence[_Grading], *, until: float) -> float:
    """Return how long at least one was worked on before `until`: the length of the union of intervals."""
    seconds, covered = 0.0, 0.0
    for grading in sorted(gradings, key=lambda grading: grading.start):
        end = min(grading.end, until)
        seconds += max(0.0, end - max(grading.start, covered))
        covered = max(covered, end)
    return seconds


class _Threads:
    """Daemon threads for one round of gradings, started as they are needed.

    Not `concurrent.futures`: when Python ends it waits for those threads. A verifier that hangs would then keep the
    process alive after the second Ctrl-C, until a third one.
    """

    def __init__(self, most: int) -> None:
        self._tasks: _Tasks = SimpleQueue()
        self._most = most
        self._count = 0
        self.end = weakref.finalize(self, _end, self._tasks, most)
        """Drop the tasks that have not started and end the threads; nothing can be submitted afterwards."""

    def submit(self, function: Callable[..., Result], *args: object) -> Future[Result]:
        future: Future[Result] = Future()
        self._tasks.put((future, partial(function, *args)))
        if self._count < self._most:
            self._count += 1
            threading.Thread(target=_work, args=(self._tasks,), name="verify", daemon=True).start()
        return future


_Tasks = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


def _work(tasks: _Tasks) -> None:
    while (task := tasks.get()) is not None:
        future, function = task
        try:
            future.set_result(function())
        except BaseException as error:  # raised again where the result is awaited, a KeyboardInterrupt too
            future.set_exception(error)
        del task, future, function  # they refer to the pool, which can only be collected when no waiting thread does


def _end(tasks: _Tasks, threads: int) -> None:
    with suppress(Empty):
        while True:
            tasks.get_nowait()
    for _ in range(threads):
        tasks.put(None)
