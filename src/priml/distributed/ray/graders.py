"""Verifiers in several actors. A lost actor is replaced, and its work is done again.

Ray's `max_restarts` and `ray.util.ActorPool` do not serve: a restart leaves no word for the user, and a response that
kills every verifier has to become undecided, not an error.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from priml.distributed.ray.actors import TRIES, Built, work_in
from priml.distributed.ray.cluster import fetch, import_ray
from priml.distributed.ray.utilization import BusyTime
from priml.graders.base import Verifier
from priml.types import Problem, Verdict

logger = logging.getLogger(__name__)

VERIFIER_THREADS = 4
"""Responses that one actor grades at once: most of the time it waits for its own worker processes."""


class BuiltVerifier(Protocol):
    """A verifier, and the isolation under which the programs of responses run."""

    @property
    def verifier(self) -> Verifier: ...

    @property
    def isolation(self) -> tuple[str, ...]: ...


class VerifierActor:
    """A verifier. Runs inside an actor."""

    def __init__(
        self, build: Callable[[Sequence[Problem]], BuiltVerifier], problems: Sequence[Problem], cwd: str
    ) -> None:
        work_in(cwd)
        self._problems = problems
        self._built = Built(partial(build, problems))

    def isolation(self) -> tuple[str, ...]:
        return self._built.get().isolation

    def grade(self, problem: int, response: str) -> tuple[Verdict, float]:
        """The verdict, and the seconds it took."""
        began = time.perf_counter()
        verdict = self._built.get().verifier.grade(self._problems[problem], response)
        return verdict, time.perf_counter() - began

    def pid(self) -> int:
        return os.getpid()


class VerifierActors:
    """A `Verifier` over several. Each has all problems, so only a response and its verdict travel."""

    def __init__(
        self,
        start: Callable[[Any], Any],
        problems: Sequence[Problem],
        count: int,
    ) -> None:
        """`start` makes an actor, given a reference to the problems; losses are reported through `say`."""
        self._ray = import_ray()
        # By identity: `problems` holds every object that is ever asked about, and its own equality is deep.
        self._problems = list(problems)
        self._index = {id(problem): index for index, problem in enumerate(problems)}
        self._ref = self._ray.put(list(problems))
        self._start = start
        self._actors = [start(self._ref) for _ in range(count)]
        self._lock = threading.Lock()
        self.busy = BusyTime()
        self._free: SimpleQueue[int] = SimpleQueue()
        for index in itertools.chain.from_iterable(range(count) for _ in range(VERIFIER_THREADS)):
            self._free.put(index)

    @property
    def size(self) -> int:
        """Responses that can be graded at once."""
        return len(self._actors) * VERIFIER_THREADS

    @property
    def pids(self) -> list[int]:
        """Process ids, on their nodes."""
        return fetch([actor.pid.remote() for actor in self._actors])

    def isolation(self) -> tuple[str, ...]:
        """Under which the programs of responses run. Waits until the verifiers are ready."""
        return fetch([actor.isolation.remote() for actor in self._actors])[0]

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The verdict of whichever verifier is free; undecided when several were lost on this response."""
        for _ in range(TRIES):
            index = self._free.get()
            actor = self._actors[index]
            try:
                verdict, seconds = fetch(actor.grade.remote(self._index[id(problem)], response))
            except self._ray.exceptions.RayActorError:
                self._replace(index, actor)
            else:
                self.busy.add(seconds)
                return verdict
            finally:
                self._free.put(index)
        return Verdict.undecided("worker lost")

    def _replace(self, index: int, lost: Any) -> None:
        """Several threads may find the same actor lost: only the first replaces it."""
        with self._lock:
            if self._actors[index] is lost:
                logger.info(f"verifier {index} was lost; another one takes its place and its work")
                self._actors[index] = self._start(self._ref)
