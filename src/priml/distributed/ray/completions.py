"""Completions on Ray: texts and tokens stay in the object store until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from priml.distributed.ray.cluster import Ref, fetch
from priml.types import Completion, FinishReason, Group


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
    step_ends: Ragged


@dataclass(frozen=True, slots=True)
class CompletionMeta:
    """What the driver knows of a completion."""

    finish_reason: FinishReason
    sample: int
    weight_version: int
    repetition: float | None


def store_completions(
    groups: Sequence[Group], annotate: Callable[[Completion], Completion]
) -> tuple[list[list[CompletionMeta]], Ragged, StoredTokens]:
    """The metas of each group; and of all completions in a row the texts (UTF-8) and the tokens.

    `annotate` finds where the steps of a completion end.
    """
    groups = [replace(group, completions=tuple(map(annotate, group.completions))) for group in groups]
    flat = [completion for group in groups for completion in group.completions]
    metas = [
        [CompletionMeta(c.finish_reason, c.sample, c.weight_version, c.repetition) for c in group.completions]
        for group in groups
    ]
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

    def completions(self, metas: Sequence[Sequence[CompletionMeta]]) -> list[tuple[CompletionRef, ...]]:
        """Those of each group."""
        index = iter(range(sum(map(len, metas))))
        return [tuple(CompletionRef(meta, self, next(index)) for meta in group) for group in metas]


@dataclass(frozen=True, slots=True, eq=False)
class CompletionRef:
    """Stands for a `Completion` on the driver, which filters by `finish_reason` and grades `text`."""

    meta: CompletionMeta
    chunk: StoredChunk
    index: int

    @property
    def finish_reason(self) -> FinishReason:
        return self.meta.finish_reason

    @property
    def text(self) -> str:
        """Fetched at each call."""
        return _decode(fetch(self.chunk.texts)[self.index])


def fetch_completions(groups: Iterable[Group]) -> list[Group]:
    """The groups with the completions themselves. Each chunk is fetched once."""
    chunks: dict[StoredChunk, tuple[Ragged, StoredTokens]] = {}

    def completion(ref: CompletionRef) -> Completion:
        if ref.chunk not in chunks:
            chunks[ref.chunk] = tuple(fetch([ref.chunk.texts, ref.chunk.tokens]))
        texts, tokens = chunks[ref.chunk]
        i = ref.index
        return Completion(
            token_ids=tokens.ids[i],
            text=_decode(texts[i]),
            logprobs=tokens.logprobs[i],
            step_ends=tokens.step_ends[i],
            **asdict(ref.meta),
        )

    def completions(group: Group) -> Iterator[Completion]:
        refs = cast(Sequence[Completion | CompletionRef], group.completions)
        return (completion(one) if isinstance(one, CompletionRef) else one for one in refs)

    return [replace(group, completions=tuple(completions(group))) for group in groups]


def _decode(utf8: NDArray[np.uint8]) -> str:
    return utf8.tobytes().decode("utf-8", "surrogatepass")
