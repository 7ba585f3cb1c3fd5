"""Verifiers in several actors. The work of a lost one is done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from priml.distributed.ray.actors import TRIES, ActorPool, PoolActor
from priml.distributed.ray.cluster import Actor, Ref, fetch, import_ray
from priml.graders.base import Verifier
from priml.types import Problem, Verdict

VERIFIER_THREADS = 4
"""Responses that one actor grades at once: most of the time it waits for its own worker processes."""


class BuiltVerifier(Protocol):
    """A verifier, and the isolation under which the programs of responses run."""

    @property
    def verifier(self) -> Verifier: ...

    @property
    def isolation(self) -> tuple[str, ...]: ...


class VerifierActor(PoolActor[BuiltVerifier]):
    """A verifier. Runs inside an actor."""

    def __init__(
        self, build: Callable[[Sequence[Problem]], BuiltVerifier], problems: Sequence[Problem], cwd: str
    ) -> None:
        self._problems = problems
        super().__init__(partial(build, problems), cwd)

    def isolation(self) -> tuple[str, ...]:
        return self.built.isolation

    def grade(self, problem: int, response: str) -> tuple[Verdict, float]:
        """The verdict, and the seconds it took."""
        began = time.perf_counter()
        verdict = self.built.verifier.grade(self._problems[problem], response)
        return verdict, time.perf_counter() - began


class VerifierActors(ActorPool):
    """A `Verifier` over several. Each has all problems, so only a response and its verdict travel."""

    def __init__(self, start: Callable[[Ref], Actor], problems: Sequence[Problem], count: int) -> None:
        """`start` makes an actor, given a reference to the problems."""
        self._ray = import_ray()
        # By identity: `problems` holds every object that is ever asked about, and its own equality is deep.
        self._problems = list(problems)
        self._index = {id(problem): index for index, problem in enumerate(problems)}
        ref = self._ray.put(self._problems)
        super().__init__("verifier", lambda index: start(ref), count)
        self._free: SimpleQueue[int] = SimpleQueue()
        for index in [*range(count)] * VERIFIER_THREADS:
            self._free.put(index)

    @property
    def size(self) -> int:
        """Responses that can be graded at once."""
        return len(self._actors) * VERIFIER_THREADS

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
