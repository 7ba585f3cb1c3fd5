"""What samplers said, on its way: texts and tokens stay in the object store until somebody reads them."""

# Fields that are fetched are properties:
# pyright: reportIncompatibleVariableOverride=false
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from priml.distributed.ray.cluster import stored
from priml.types import Completion, FinishReason, Group


@dataclass(frozen=True, slots=True)
class Rows:
    """Arrays of different lengths, one after the other in a single one."""

    values: NDArray[Any]
    ends: NDArray[np.int64]
    """Where each of them ends."""

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> Rows:
        """These, at least one."""
        return cls(np.concatenate(arrays), np.cumsum([len(array) for array in arrays]))

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self.values[self.ends[index - 1] if index else 0 : self.ends[index]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of all responses of a piece of work."""

    ids: Rows
    logprobs: Rows
    step_ends: Rows


@dataclass(frozen=True, slots=True)
class Heading:
    """What the driver knows of a response."""

    finish_reason: FinishReason
    sample: int
    weight_version: int
    repetition: float | None

    @classmethod
    def of(cls, completion: Completion) -> Heading:
        """What it says of itself."""
        return cls(**{name: getattr(completion, name) for name in cls.__slots__})


def told(
    groups: Sequence[Group], annotate: Callable[[Completion], Completion]
) -> tuple[list[list[Heading]], Rows, Tokens]:
    """What was said and found, apart: headings of each group's responses; of all responses in a row, texts (UTF-8) and
    tokens. `annotate` finds where steps end."""
    groups = [replace(group, completions=tuple(map(annotate, group.completions))) for group in groups]
    all_ = [completion for group in groups for completion in group.completions]
    headings = [[Heading.of(completion) for completion in group.completions] for group in groups]
    texts = [np.frombuffer(c.text.encode("utf-8", "surrogatepass"), dtype=np.uint8) for c in all_]
    ends = [c.step_ends for c in all_ if c.step_ends is not None]
    assert len(ends) == len(all_), "whoever looks it over finds where its steps end"
    tokens = Tokens(Rows.of([c.token_ids for c in all_]), Rows.of([c.logprobs for c in all_]), Rows.of(ends))
    return headings, Rows.of(texts), tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """References to what was said in one piece of work: texts and tokens."""

    texts: Any
    tokens: Any

    def completions(self, headings: Sequence[Sequence[Heading]]) -> list[tuple[Completion, ...]]:
        """Each group's."""
        counted = iter(range(sum(map(len, headings))))
        return [tuple(StoredCompletion(heading, self, next(counted)) for heading in group) for group in headings]


class StoredCompletion(Completion):
    """A completion that lies in the object store. Whoever reads its text or tokens fetches them each time."""

    __slots__ = ("index", "piece")

    def __init__(self, heading: Heading, piece: Piece, index: int) -> None:
        for name in heading.__slots__:
            object.__setattr__(self, name, getattr(heading, name))
        object.__setattr__(self, "piece", piece)
        object.__setattr__(self, "index", index)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (Heading.of(self), self.piece, self.index)

    @property
    def text(self) -> str:
        """The decoded response without special tokens."""
        return _decoded(stored(self.piece.texts)[self.index])

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Response tokens."""
        return stored(self.piece.tokens).ids[self.index]

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Log-probabilities of the tokens."""
        return stored(self.piece.tokens).logprobs[self.index]

    @property
    def step_ends(self) -> NDArray[np.int32]:
        """Indices of the tokens that end a step."""
        return stored(self.piece.tokens).step_ends[self.index]


def brought(groups: Iterable[Group]) -> list[Group]:
    """The groups with their completions here, each piece fetched once."""
    pieces: dict[Piece, tuple[Rows, Tokens]] = {}

    def bring(completion: Completion) -> Completion:
        if not isinstance(completion, StoredCompletion):
            return completion
        piece, i = completion.piece, completion.index
        if piece not in pieces:
            pieces[piece] = tuple(stored([piece.texts, piece.tokens]))
        texts, tokens = pieces[piece]
        return Completion(
            token_ids=tokens.ids[i],
            text=_decoded(texts[i]),
            finish_reason=completion.finish_reason,
            logprobs=tokens.logprobs[i],
            sample=completion.sample,
            weight_version=completion.weight_version,
            step_ends=tokens.step_ends[i],
            repetition=completion.repetition,
        )

    return [replace(group, completions=tuple(map(bring, group.completions))) for group in groups]


def _decoded(utf8: NDArray[np.uint8]) -> str:
    return utf8.tobytes().decode("utf-8", "surrogatepass")
