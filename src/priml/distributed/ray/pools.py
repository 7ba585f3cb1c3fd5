"""Samplers and verifiers as pools of actors. A lost one is replaced, and what it was doing is done again."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from priml.distributed.process_group import balance_by_size
from priml.distributed.ray.cluster import import_ray
from priml.distributed.ray.completions import Heading, Piece, Rows, Tokens, told
from priml.distributed.ray.ranks import RayWeights, enter
from priml.distributed.ray.serialize import Parcel, unpacked
from priml.distributed.ray.utilization import BusyTime
from priml.errors import PrimlError, RunError
from priml.rollout.base import Finished, SamplingSpec
from priml.rollout.draws import SampleNumbers
from priml.types import Completion, Group, LocalWeights, Problem, Prompt, Verdict, WeightSource

_TRIES = 3
"""How often a piece of work is begun before it, not the actor, is thought to be the trouble."""
VERIFIER_THREADS = 4
"""Responses that one verifier actor judges at once: most of the time it waits for workers of its own."""


Receive = Callable[[Any, int], None]
"""Makes a sampler speak with weights as they come from the ranks, and a version."""


def copying_into(module: Any, sampler: Any) -> Receive:
    """For a sampler that reads a module of its own process. Weights that do not come stay as they are."""
    own = dict(module.named_parameters())

    def receive(state: dict[str, torch.Tensor], version: int) -> None:
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)
        sampler.load(LocalWeights(module), version)

    return receive


class _Made:
    """What an actor works with, or why that could not be made: of what an actor's constructor raises, Ray hands on the
    text alone, so it is kept for whoever asks."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: PrimlError | None = None
        try:
            self._value = make()
        except PrimlError as error:
            self._error = error

    def get(self) -> Any:
        """It.

        Raises:
            PrimlError: what its making raised.
        """
        if self._error is not None:
            raise self._error
        return self._value


@dataclass(frozen=True, slots=True)
class SamplerWorker:
    """What a sampler actor works with."""

    sampler: Any
    receive: Receive
    annotate: Callable[[Completion], Completion]
    """Finds what the records of a step need to know of a response's tokens."""


class SamplerActor:
    """A sampler. Runs inside an actor."""

    def __init__(self, make: Callable[[], SamplerWorker], cwd: str, devices: Sequence[str]) -> None:
        """`devices`: accelerators to use, as the node numbers them, instead of those that Ray chose."""
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        enter(cwd)
        self._made = _Made(make)

    def ready(self) -> None:
        """Whether there is a sampler; raises why not."""
        self._made.get()

    def verify_weight_sync(self, *pushes: Parcel) -> None:
        """Prove that weights arrive, with other ones first."""
        self._made.get().sampler.verify_weight_sync(map(unpacked, pushes))

    def load(self, weights: Parcel, version: int) -> None:
        """Speak with these weights from now on."""
        self._made.get().receive(unpacked(weights), version)

    def sample(
        self, prompts: Sequence[Prompt], numbers: list[range], spec: SamplingSpec
    ) -> tuple[tuple[list[list[Heading]], float], Rows, Tokens]:
        """What is said to each prompt, with these sample numbers, in three: headings and the seconds it took; texts;
        tokens."""
        began = time.perf_counter()
        worker = self._made.get()
        groups = worker.sampler.sample(prompts, spec, numbers=numbers)
        headings, texts, tokens = told(groups, worker.annotate)
        return (headings, time.perf_counter() - began), texts, tokens

    def pid(self) -> int:
        """Process id, on its node."""
        return os.getpid()


class SamplerPool:
    """A `Sampler` over several. Which of them draws a response does not matter: its random numbers are its own."""

    def __init__(self, start: Callable[[int], Any], count: int, *, max_rows: int, say: Callable[[str], None]) -> None:
        """`start` makes the actor of an index; `max_rows` responses are asked of one at a time; `say` is told of
        losses."""
        self._ray = import_ray()
        self._start = start
        self._actors = [start(index) for index in range(count)]
        self._max_rows = max_rows
        self._say = say
        self._numbers = SampleNumbers()
        self._loaded: tuple[RayWeights, int] | None = None
        self._frozen: RayWeights | None = None
        self.busy = BusyTime()

    @property
    def pids(self) -> list[int]:
        """Process ids, on their nodes."""
        return self._ray.get([actor.pid.remote() for actor in self._actors])

    @property
    def size(self) -> int:
        """How many."""
        return len(self._actors)

    def wait(self) -> None:
        """Until every sampler is ready.

        Raises:
            PrimlError: one of them could not be made.
        """
        try:
            self._ray.get([actor.ready.remote() for actor in self._actors])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def verify_weight_sync(self, weights: Sequence[RayWeights], *, separate_adapters: bool) -> None:
        """Have every sampler prove that weights arrive: other ones, then the real ones. With `separate_adapters` later
        updates hold adapters alone, so a replacement of a lost sampler is given the last of these first."""
        self._frozen = weights[-1] if separate_adapters else None
        try:
            self._ray.get([actor.verify_weight_sync.remote(*(each.ref for each in weights)) for actor in self._actors])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def load(self, weights: WeightSource, version: int) -> None:
        """Every sampler fetches the weights from the object store, once a node."""
        assert isinstance(weights, RayWeights), "the ranks' weights are references"
        self._loaded = weights, version
        loading = {actor.load.remote(weights.ref, version): index for index, actor in enumerate(self._actors)}
        for ref, index in loading.items():
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayActorError:
                self._replace(index)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Finished | None = None) -> list[Group]:
        """One group per prompt, in the order of the prompts; whoever is free takes the next piece of the work.

        Raises:
            RunError: a piece of work has ended several samplers.
        """
        numbers = self._numbers.take(prompts, spec)
        pieces = self._pieces(prompts, spec)
        tries = [0] * len(pieces)
        waiting = list(range(len(pieces)))
        free = list(range(len(self._actors)))
        running: dict[Any, tuple[int, int, Piece]] = {}
        completions: dict[int, tuple[Completion, ...]] = {}
        while waiting or running:
            while waiting and free:
                piece, actor = waiting.pop(0), free.pop(0)
                tries[piece] += 1
                chosen = pieces[piece]
                asked = [prompts[i] for i in chosen], [numbers[i] for i in chosen], spec
                first, texts, tokens = self._actors[actor].sample.options(num_returns=3).remote(*asked)
                running[first] = piece, actor, Piece(texts, tokens)
            done, _ = self._ray.wait(list(running), num_returns=1)
            piece, actor, said = running.pop(done[0])
            try:
                headings, seconds = self._ray.get(done[0])
            except self._ray.exceptions.RayActorError:
                if tries[piece] == _TRIES:
                    raise RunError(
                        f"the same {len(pieces[piece])} prompts ended {_TRIES} samplers one after the other, most "
                        "likely for want of memory: lower sampler.max_rows or sampling.max_new_tokens"
                    ) from None
                self._replace(actor)
                waiting.insert(0, piece)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            else:
                self.busy.add(seconds)
                completions |= dict(zip(pieces[piece], said.completions(headings), strict=True))
                for index in pieces[piece] if finished else ():
                    for completion in completions[index]:
                        finished(prompts[index], completion)  # pyright: ignore[reportOptionalCall]
            free.append(actor)
        return [Group(prompt=prompt, completions=completions[i]) for i, prompt in enumerate(prompts)]

    def _pieces(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[list[int]]:
        """Prompts in as many pieces as there are samplers, or in more if they would be too large."""
        most = max(1, self._max_rows // spec.group_size)
        count = min(len(prompts), max(len(self._actors), -(-len(prompts) // most)))
        return balance_by_size([len(prompt.token_ids) for prompt in prompts], count)

    def _replace(self, index: int) -> None:
        self._say(f"sampler {index} was lost; another one takes its place and its work")
        self._actors[index] = self._start(index)
        # All of it comes before whatever is asked of it next.
        if self._frozen is not None:
            self._actors[index].load.remote(self._frozen.ref, 0)
        if self._loaded is not None:
            weights, version = self._loaded
            self._actors[index].load.remote(weights.ref, version)


class VerifierActor:
    """A verifier. Runs inside an actor."""

    def __init__(self, make: Callable[[Sequence[Problem]], Any], problems: Sequence[Problem], cwd: str) -> None:
        enter(cwd)
        self._problems = problems
        self._judge = _Made(partial(make, problems))

    def isolation(self) -> tuple[str, ...]:
        """Under which the programs of responses run here."""
        return self._judge.get().isolation

    def grade(self, problem: int, response: str) -> tuple[Verdict, float]:
        """The verdict, and the seconds it took."""
        began = time.perf_counter()
        verdict = self._judge.get().verifier.grade(self._problems[problem], response)
        return verdict, time.perf_counter() - began

    def pid(self) -> int:
        """Process id, on its node."""
        return os.getpid()


class VerifierActors:
    """A `Verifier` over several. The problems lie with each of them; what travels is a response and its verdict."""

    def __init__(
        self,
        start: Callable[[Any], Any],
        problems: Sequence[Problem],
        count: int,
        *,
        say: Callable[[str], None],
    ) -> None:
        """`start` makes an actor, given a reference to the problems; `say` is told of losses."""
        self._ray = import_ray()
        self._say = say
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
        """Responses that can be judged at once."""
        return len(self._actors) * VERIFIER_THREADS

    @property
    def pids(self) -> list[int]:
        """Process ids, on their nodes."""
        return self._ray.get([actor.pid.remote() for actor in self._actors])

    def isolation(self) -> tuple[str, ...]:
        """Under which the programs of responses run; waits until the verifiers are ready."""
        try:
            return self._ray.get([actor.isolation.remote() for actor in self._actors])[0]
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The verdict of whichever verifier is free; undecided when several were lost on this response."""
        for _ in range(_TRIES):
            index = self._free.get()
            actor = self._actors[index]
            try:
                verdict, seconds = self._ray.get(actor.grade.remote(self._index[id(problem)], response))
            except self._ray.exceptions.RayActorError:
                self._replace(index, actor)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            else:
                self.busy.add(seconds)
                return verdict
            finally:
                self._free.put(index)
        return Verdict.undecided("worker lost")

    def _replace(self, index: int, lost: Any) -> None:
        """Once, though several threads may find it lost."""
        with self._lock:
            if self._actors[index] is lost:
                self._say(f"verifier {index} was lost; another one takes its place and its work")
                self._actors[index] = self._start(self._ref)
