"""Samplers in several actors. The work of a lost one is done again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from priml.distributed.process_group import balance_by_size
from priml.distributed.ray.actors import TRIES, ActorPool, PoolActor
from priml.distributed.ray.cluster import Actor, Ref, fetch, import_ray
from priml.distributed.ray.roles import RayWeights
from priml.distributed.ray.trajectories import (
    Ragged,
    StoredChunk,
    StoredTokens,
    TrajectoryMeta,
    TrajectoryRef,
    store_trajectories,
)
from priml.errors import RunError
from priml.rollout.base import Finished, Sampler, SamplingSpec
from priml.rollout.trajectories import SampleNumbers
from priml.rollout.weight_sync import WeightUpdate
from priml.types import Group, Prompt, Trajectory

W = TypeVar("W")
Receive: TypeAlias = Callable[[W, int], None]
"""Gives a sampler the weights that come from the ranks, and their version."""


def copying_into(module: PreTrainedModel, sampler: Sampler) -> Receive[Mapping[str, Tensor]]:
    """For a sampler that reads a module of its own process. Weights that do not come stay as they are."""
    own = dict(module.named_parameters())

    def receive(state: Mapping[str, Tensor], version: int) -> None:
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)
        sampler.load(module, version)

    return receive


@dataclass(frozen=True, slots=True)
class SamplerWorker(Generic[W]):
    """What a sampler actor works with."""

    sampler: Any
    receive: Receive[W]
    annotate: Callable[[Trajectory], Trajectory]
    """Finds what the records of a step need to know of a response's tokens."""
    verify_weight_sync: Callable[[Sequence[WeightUpdate]], None] | None = None
    """Proves that weights arrive; None for a sampler that reads a module of its own process."""


class SamplerActor(PoolActor[SamplerWorker[Any]]):
    """A sampler. Runs inside an actor."""

    def __init__(self, build: Callable[[], SamplerWorker[Any]], cwd: str, devices: Sequence[str]) -> None:
        """`devices`: accelerators to use, as the node numbers them, instead of those that Ray chose."""
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        super().__init__(build, cwd)

    def ready(self) -> None:
        """Raise the error of building the sampler, if there was one."""
        assert self.built

    def verify_weight_sync(self, *updates: WeightUpdate) -> None:
        """Prove that weights arrive, with other ones first."""
        assert self.built.verify_weight_sync is not None, "only engines are asked"
        self.built.verify_weight_sync(updates)

    def load(self, weights: object, version: int) -> None:
        """Sample with these weights from now on."""
        self.built.receive(weights, version)

    def sample(
        self, prompts: Sequence[Prompt], numbers: list[range], spec: SamplingSpec
    ) -> tuple[tuple[list[list[TrajectoryMeta]], float], Ragged, StoredTokens]:
        """Sample with these sample numbers. Three values: metas and the seconds it took; texts; tokens."""
        began = time.perf_counter()
        groups = self.built.sampler.sample(prompts, spec, numbers=numbers)
        metas, texts, tokens = store_trajectories(groups, self.built.annotate)
        return (metas, time.perf_counter() - began), texts, tokens


@dataclass(slots=True)
class _Piece:
    """A part of the prompts, which one sampler works on."""

    indices: list[int]
    tries: int = 0


class SamplerPool(ActorPool):
    """A `Sampler` over several. Which of them draws a response does not matter: its random numbers are its own."""

    def __init__(self, start: Callable[[int], Actor], count: int, *, max_rows: int) -> None:
        """`start` makes the actor of an index. One actor samples `max_rows` responses at a time."""
        super().__init__("sampler", start, count)
        self._ray = import_ray()
        self._max_rows = max_rows
        self._numbers = SampleNumbers()
        self._loaded: tuple[RayWeights, int] | None = None
        self._frozen: RayWeights | None = None

    @property
    def size(self) -> int:
        return len(self._actors)

    def wait(self) -> None:
        """Wait until every sampler is ready. Raises the error of building one."""
        fetch([actor.ready.remote() for actor in self._actors])

    def verify_weight_sync(self, weights: Sequence[RayWeights], *, separate_adapters: bool) -> None:
        """Have every sampler prove that weights arrive: other ones first, then the real ones.

        With `separate_adapters` later weights are adapters alone: a replacement of a lost sampler gets the real ones,
        too.
        """
        self._frozen = weights[-1] if separate_adapters else None
        fetch([actor.verify_weight_sync.remote(*(each.ref for each in weights)) for actor in self._actors])

    def load(self, weights: RayWeights, version: int) -> None:
        """Every sampler fetches the weights from the object store, once a node."""
        self._loaded = weights, version
        loading = {actor.load.remote(weights.ref, version): index for index, actor in enumerate(self._actors)}
        for ref, index in loading.items():
            try:
                fetch(ref)
            except self._ray.exceptions.RayActorError:
                self._replace(index, self._actors[index])

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Finished | None = None) -> list[Group]:
        """One group per prompt, in the order of the prompts. A free sampler takes the next piece of the work.

        Raises:
            RunError: a piece of work has ended several samplers.
        """
        numbers = self._numbers.take(prompts, spec)
        waiting = self._pieces(prompts, spec)
        free = list(range(len(self._actors)))
        running: dict[Ref, tuple[_Piece, int, StoredChunk]] = {}
        trajectories: dict[int, tuple[TrajectoryRef, ...]] = {}
        while waiting or running:
            while waiting and free:
                piece, actor = waiting.pop(0), free.pop(0)
                piece.tries += 1
                asked = [prompts[i] for i in piece.indices], [numbers[i] for i in piece.indices], spec
                metas, texts, tokens = self._actors[actor].sample.options(num_returns=3).remote(*asked)
                running[metas] = piece, actor, StoredChunk(texts, tokens)
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            piece, actor, chunk = running.pop(done)
            free.append(actor)
            metas = self._result(done, piece, actor)
            if metas is None:
                waiting.insert(0, piece)
                continue
            trajectories |= dict(zip(piece.indices, chunk.trajectories(metas), strict=True))
            if finished is not None:
                for i in piece.indices:
                    for trajectory in trajectories[i]:
                        finished(prompts[i], cast(Trajectory, trajectory))
        # On the driver, references stand for trajectories (`trajectories.py`).
        return [Group(prompt, cast(tuple[Trajectory, ...], trajectories[i])) for i, prompt in enumerate(prompts)]

    def _result(self, ref: Ref, piece: _Piece, actor: int) -> list[list[TrajectoryMeta]] | None:
        """The metas of a finished piece; None when its sampler was lost and has been replaced."""
        try:
            metas, seconds = fetch(ref)
        except self._ray.exceptions.RayActorError:
            if piece.tries == TRIES:
                raise RunError(
                    f"the same {len(piece.indices)} prompts ended {TRIES} samplers one after the other, most "
                    "likely for want of memory: lower sampler.max_rows or sampling.max_new_tokens"
                ) from None
            self._replace(actor, self._actors[actor])
            return None
        self.busy.add(seconds)
        return metas

    def _pieces(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[_Piece]:
        """Prompts in as many pieces as there are samplers, or in more if they would be too large."""
        most = max(1, self._max_rows // spec.group_size)
        count = min(len(prompts), max(len(self._actors), -(-len(prompts) // most)))
        return [_Piece(indices) for indices in balance_by_size([len(prompt.token_ids) for prompt in prompts], count)]

    def _replace(self, index: int, lost: Actor) -> None:
        super()._replace(index, lost)
        # An actor's calls come in order: the weights are there before it samples.
        if self._frozen is not None:
            self._actors[index].load.remote(self._frozen.ref, 0)
        if self._loaded is not None:
            weights, version = self._loaded
            self._actors[index].load.remote(weights.ref, version)
