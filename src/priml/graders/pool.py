"""From one response to all of a step, graded while the sampler still speaks: `verify` knows groups here alone."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from priml.graders.base import Verifier
from priml.types import Completion, Group, Problem, Prompt, Verdict

THREADS = 16
"""Responses that are graded at once, unless the verifier has room for more."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much grading was done before the groups were handed over; times as in `time.perf_counter`."""

    start: float
    """When the first grading was begun."""
    end: float
    """When the groups were handed over, sampling being done."""
    seconds: float
    """How long at least one response was being graded in between."""


class VerifierPool:
    """The `GroupVerifier` over any `Verifier`, whose `grade` it calls from several threads at once.

    Verdicts do not depend on when a response was begun: they are matched to it, and come in the order of the groups.
    Whatever comes back undecided has been asked twice.
    """

    def __init__(
        self, verifier: Verifier, *, overlapped: Callable[[Overlap], None] | None = None, threads: int = THREADS
    ) -> None:
        """`overlapped` is told once for each call to which something had been begun beforehand; `threads` responses are
        graded at once."""
        self._verifier = verifier
        self._overlapped = overlapped
        self._count = threads
        self._threads = _Threads(threads)
        self._begun: dict[int, _Begun] = {}
        """By identity of the completion: two responses of a group may be equal."""
        self._failure: BaseException | None = None

    def begin(self, prompt: Prompt, completion: Completion) -> None:
        """Start grading a finished response; the verdict waits for the call with its group.

        Raises:
            Exception: what an earlier grading raised; there is no need to sample on.
        """
        if self._failure is not None:
            failure = self._failure
            self._forget()
            raise failure
        begun = self._begun[id(completion)] = self._begin(prompt.problem, completion)
        begun.future.add_done_callback(self._note_failure)

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with one verdict per completion. What was begun for other groups is forgotten.

        Raises:
            Exception: what the verifier raised, the first in the order of the groups.
        """
        handed_over = time.perf_counter()
        try:
            begun = [
                self._begun.get(id(completion)) or self._begin(group.prompt.problem, completion)
                for group in groups
                for completion in group.completions
            ]
            gradings = [one.future.result() for one in begun]
        finally:
            self._forget()
        start = min((one.since for one in begun), default=handed_over)
        if self._overlapped is not None and start < handed_over:
            self._overlapped(Overlap(start, handed_over, _busy_seconds(gradings, until=handed_over)))
        verdicts = (grading.verdict for grading in gradings)
        return [replace(group, verdicts=tuple(next(verdicts) for _ in group.completions)) for group in groups]

    def _begin(self, problem: Problem, completion: Completion) -> _Begun:
        since = time.perf_counter()
        return _Begun(completion, since, self._threads.submit(self._grade, problem, completion))

    def _grade(self, problem: Problem, completion: Completion) -> _Grading:
        start = time.perf_counter()
        response = completion.text  # not before: it may have to be fetched
        verdict = self._verifier.grade(problem, response)
        if verdict.correct is None:
            verdict = self._verifier.grade(problem, response)
        return _Grading(verdict, start, time.perf_counter())

    def _note_failure(self, future: Future[_Grading]) -> None:
        self._failure = self._failure or future.exception()

    def _forget(self) -> None:
        self._threads.end()
        self._threads = _Threads(self._count)
        self._begun, self._failure = {}, None


def fan_out(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in order. The threads only wait: for worker processes, for a service."""
    threads = _Threads(THREADS)
    try:
        futures = [threads.submit(function, item) for item in items]
        return [future.result() for future in futures]
    finally:
        threads.end()


@dataclass(frozen=True, slots=True)
class _Grading:
    """A verdict, and when it was worked on."""

    verdict: Verdict
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Begun:
    """A grading under way. Holding the completion keeps its identity from being given to another one."""

    completion: Completion
    since: float
    future: Future[_Grading]


def _busy_seconds(gradings: Sequence[_Grading], *, until: float) -> float:
    """How long, before `until`, at least one of them was worked on: the length of their union."""
    seconds, covered = 0.0, 0.0
    for grading in sorted(gradings, key=lambda grading: grading.start):
        end = min(grading.end, until)
        seconds += max(0.0, end - max(grading.start, covered))
        covered = max(covered, end)
    return seconds


class _Threads:
    """Threads for a round of gradings, started as they are needed.

    Python waits for the threads of `concurrent.futures` when it ends. It does not wait for these, so that a second
    Ctrl-C is answered at once, whatever a verifier is waiting for.
    """

    def __init__(self, most: int) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._most = most
        self._count = 0
        self.end = weakref.finalize(self, _end, self._tasks, most)
        """Drop the tasks that have not begun and let the threads go; nothing can be submitted afterwards."""

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """The future of `function(*args)`."""
        future: Future[Result] = Future()
        self._tasks.put(lambda: _resolve(future, function, args))
        if self._count < self._most:
            self._count += 1
            threading.Thread(target=_work, args=(self._tasks,), name="verify", daemon=True).start()
        return future


def _work(tasks: SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # it holds the pool, which shall be free to go while this thread waits


def _resolve(future: Future[Result], function: Callable[..., Result], args: tuple[Any, ...]) -> None:
    try:
        future.set_result(function(*args))
    except BaseException as error:  # a thread has nobody to raise to: whoever waits for the result gets it, all of it
        future.set_exception(error)


def _end(tasks: SimpleQueue[Callable[[], None] | None], threads: int) -> None:
    with suppress(Empty):
        while True:
            tasks.get_nowait()
    for _ in range(threads):
        tasks.put(None)
