"""Trajectories on Ray: texts and tokens stay in the object store until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from priml.distributed.ray.cluster import Ref, fetch
from priml.types import FinishReason, Group, Segment, Trajectory, Verdict


@dataclass(frozen=True, slots=True)
class Ragged:
    """Arrays of different lengths in a single one, one after the other."""

    values: NDArray[Any]
    ends: NDArray[np.int64]
    """Where each of them ends."""

    @classmethod
    def concatenate(cls, arrays: Sequence[NDArray[Any]]) -> Ragged:
        return cls(np.concatenate(arrays), np.cumsum([len(array) for array in arrays]))

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.ends[index - 1] if index else 0 : self.ends[index]]


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """The tokens of all responses that a sampler returned at once."""

    ids: Ragged
    logprobs: Ragged
    """Of the trained tokens."""
    step_ends: Ragged


@dataclass(frozen=True, slots=True)
class TrajectoryMeta:
    """What the driver knows of a trajectory."""

    finish_reason: FinishReason
    sample: int
    segments: tuple[tuple[int, int | None], ...]
    """The number of tokens and the weight version of each."""
    repetition: float | None
    turn_rewards: tuple[float, ...] | None
    verdict: Verdict | None

    @classmethod
    def from_trajectory(cls, trajectory: Trajectory) -> TrajectoryMeta:
        segments = tuple((len(segment.token_ids), segment.weight_version) for segment in trajectory.segments)
        return cls(
            trajectory.finish_reason,
            trajectory.sample,
            segments,
            trajectory.repetition,
            trajectory.turn_rewards,
            trajectory.verdict,
        )


def store_trajectories(
    groups: Sequence[Group], annotate: Callable[[Trajectory], Trajectory]
) -> tuple[list[list[TrajectoryMeta]], Ragged, StoredTokens]:
    """The metas of each group; and of all trajectories in a row the texts (UTF-8) and the tokens.

    `annotate` finds where the steps of a trajectory end.
    """
    groups = [replace(group, trajectories=tuple(map(annotate, group.trajectories))) for group in groups]
    flat = [trajectory for group in groups for trajectory in group.trajectories]
    metas = [[TrajectoryMeta.from_trajectory(trajectory) for trajectory in group.trajectories] for group in groups]
    texts = [np.frombuffer(c.text.encode("utf-8", "surrogatepass"), dtype=np.uint8) for c in flat]
    ends = [c.step_ends for c in flat if c.step_ends is not None]
    assert len(ends) == len(flat), "annotate finds the step ends"
    tokens = StoredTokens(
        Ragged.concatenate([c.token_ids for c in flat]),
        Ragged.concatenate([c.logprobs for c in flat]),
        Ragged.concatenate(ends),
    )
    return metas, Ragged.concatenate(texts), tokens


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """References to the texts and the tokens that a sampler returned at once."""

    texts: Ref
    tokens: Ref

    def trajectories(self, metas: Sequence[Sequence[TrajectoryMeta]]) -> list[tuple[TrajectoryRef, ...]]:
        """Those of each group."""
        index = iter(range(sum(map(len, metas))))
        return [tuple(TrajectoryRef(meta, self, next(index)) for meta in group) for group in metas]


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryRef:
    """Stands for a `Trajectory` on the driver, which filters by `finish_reason` and grades `text`."""

    meta: TrajectoryMeta
    chunk: StoredChunk
    index: int

    @property
    def finish_reason(self) -> FinishReason:
        return self.meta.finish_reason

    @property
    def verdict(self) -> Verdict | None:
        return self.meta.verdict

    @property
    def num_trained(self) -> int:
        return sum(length for length, version in self.meta.segments if version is not None)

    @property
    def text(self) -> str:
        """Fetched at each call."""
        return _decode(fetch(self.chunk.texts)[self.index])


def fetch_trajectories(groups: Iterable[Group]) -> list[Group]:
    """The groups with the trajectories themselves. Each chunk is fetched once."""
    chunks: dict[StoredChunk, tuple[Ragged, StoredTokens]] = {}

    def trajectory(ref: TrajectoryRef) -> Trajectory:
        if ref.chunk not in chunks:
            chunks[ref.chunk] = tuple(fetch([ref.chunk.texts, ref.chunk.tokens]))
        texts, tokens = chunks[ref.chunk]
        i = ref.index
        return Trajectory(
            segments=tuple(_segments(tokens.ids[i], tokens.logprobs[i], ref.meta.segments)),
            text=_decode(texts[i]),
            finish_reason=ref.meta.finish_reason,
            sample=ref.meta.sample,
            step_ends=tokens.step_ends[i],
            repetition=ref.meta.repetition,
            turn_rewards=ref.meta.turn_rewards,
            verdict=ref.meta.verdict,
        )

    def trajectories(group: Group) -> Iterator[Trajectory]:
        refs = cast(Sequence[Trajectory | TrajectoryRef], group.trajectories)
        return (trajectory(one) if isinstance(one, TrajectoryRef) else one for one in refs)

    return [replace(group, trajectories=tuple(trajectories(group))) for group in groups]


def _segments(
    token_ids: NDArray[np.int32], logprobs: NDArray[np.float32], segments: Sequence[tuple[int, int | None]]
) -> Iterator[Segment]:
    """All tokens and the log-probs of the trained ones, cut into segments."""
    start = trained = 0
    for num_tokens, version in segments:
        sampled = 0 if version is None else num_tokens
        yield Segment(token_ids[start : start + num_tokens], logprobs[trained : trained + sampled], version)
        start, trained = start + num_tokens, trained + sampled


def _decode(utf8: NDArray[np.uint8]) -> str:
    return utf8.tobytes().decode("utf-8", "surrogatepass")
