"""Responses cut into tokens, with the numbers of each token."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from priml.data.steps import text_growth

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 2000
"""Longer responses are cut here, to keep the page light."""

TOKEN_COLUMNS = (
    "process_rewards",
    "step_rewards",
    "advantages",
    "prm_logprobs",
    "ref_logprobs",
    "old_logprobs",
    "sampler_logprobs",
    "entropies",
)
COLOURED = ("process_rewards", "step_rewards", "advantages")
"""Numbers of a token that may give it its colour."""
_TEXT_COLUMNS = ("problem_id", "source", "prompt", "response", "finish_reason", "verdict", "reason", "answer", "gold")
_READ = (
    *("sample", "weight_version", "outcome", "filter_status", "response_ids", "segments", "step_ends"),
    *_TEXT_COLUMNS,
    *TOKEN_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class Response:
    """One row of a rollout file. A value the run never computed is None."""

    step: int
    row: int | None
    """Where it stands in the file of its step; None where there is no such file."""
    sample: int | None
    weight_version: int | None
    outcome: float | None
    filter_status: str | None
    texts: Mapping[str, str | None]
    """`problem_id`, `source`, `prompt`, `response`, `finish_reason`, `verdict`, `reason`, `answer`, `gold`, where the
    file has them."""
    num_tokens: int
    token_ids: tuple[int, ...]
    """The first `MAX_TOKENS`."""
    pieces: tuple[str, ...] | None
    """The text each token adds; empty where a character needs more tokens to be whole. None without a tokenizer."""
    step_ends: tuple[int, ...]
    """Indices of the tokens that end a reasoning step."""
    observed: tuple[int, ...]
    """Indices of the tokens that the policy did not sample: they came from its environment."""
    numbers: Mapping[str, tuple[float | None, ...] | None]
    """One value per token, None where it was observed, for each of `TOKEN_COLUMNS` that the file has."""


def read_group(path: Path, rows: Sequence[int], tokenizer: Tokenizer | None) -> list[Response]:
    """Some rows of a rollout file, read from the row groups that hold them."""
    file = pq.ParquetFile(path)
    found: list[Response] = []
    start = 0
    for i in range(file.num_row_groups):
        end = start + file.metadata.row_group(i).num_rows
        here = [row for row in rows if start <= row < end]
        if here:
            table = file.read_row_group(i, columns=[name for name in _READ if name in file.schema_arrow.names])
            read = table.take([row - start for row in here]).to_pylist()
            found += [
                read_response(values, int(path.stem), tokenizer, row=row)
                for row, values in zip(here, read, strict=True)
            ]
        start = end
    return found


def token_pieces(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...]:
    """The text that each token adds to the response, special tokens included.

    A character may be spread over several tokens: all but the last of these add the empty string. The last token of a
    response that was cut inside a character adds its replacement.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    text, known = text_growth(token_ids, decode)
    pieces = [text[start:end] for start, end in pairwise([0, *known])]
    whole = decode(list(token_ids))
    if pieces and whole.startswith(text):
        pieces[-1] += whole[len(text) :]
    return tuple(pieces)


def colour_limits(responses: Sequence[Response]) -> Mapping[str, float]:
    """Where the colour scale of each measure saturates; a measure that is 0 everywhere is absent."""
    limits: dict[str, float] = {}
    for name in COLOURED:
        sizes = sorted(abs(x) for r in responses for x in r.numbers.get(name) or () if x)
        if sizes:
            # The 98th percentile: one extreme token must not bleach all the others.
            limits[name] = sizes[min(len(sizes) - 1, int(0.98 * len(sizes)))]
    return limits


def load_tokenizer(path: Path) -> Tokenizer | None:
    """A `tokenizer.json`; None when it is missing or damaged."""
    # Imported here: only runs with rollouts need it, and `priml --help` never does.
    from tokenizers import Tokenizer

    try:
        json.loads(path.read_text(encoding="utf-8"))  # the library has no error of its own for a damaged file
    except (OSError, ValueError):
        return None
    return Tokenizer.from_file(str(path))


def read_response(
    values: Mapping[str, Any], step: int, tokenizer: Tokenizer | None, *, row: int | None = None
) -> Response:
    """A row of a rollout file, or of the scores of `priml prm`."""
    ids = values.get("response_ids") or []
    shown = tuple(ids[:MAX_TOKENS])
    # The file counts trained tokens, the page all of them. Files of one turn, and old ones, have no others.
    segments = values.get("segments") or [{"num_tokens": len(ids), "weight_version": 0}]
    is_trained = [s["weight_version"] is not None for s in segments for _ in range(s["num_tokens"])]
    trained = [i for i, sampled in enumerate(is_trained) if sampled]
    ends = (trained[end] for end in values.get("step_ends") or [] if end < len(trained))
    return Response(
        step=step,
        row=row,
        sample=values.get("sample"),
        weight_version=values.get("weight_version"),
        outcome=_finite(values.get("outcome")),
        filter_status=values.get("filter_status"),
        texts={name: values[name] for name in _TEXT_COLUMNS if name in values},
        num_tokens=len(ids),
        token_ids=shown,
        pieces=None if tokenizer is None else token_pieces(shown, tokenizer),
        step_ends=tuple(end for end in ends if end < len(shown)),
        observed=tuple(i for i, sampled in enumerate(is_trained[:MAX_TOKENS]) if not sampled),
        numbers={name: _numbers(values[name], is_trained) for name in TOKEN_COLUMNS if name in values},
    )


def _numbers(values: Sequence[float | None] | None, is_trained: Sequence[bool]) -> tuple[float | None, ...] | None:
    if values is None or len(values) != sum(is_trained):
        return None
    of_trained = iter(values)
    return tuple(_finite(next(of_trained)) if sampled else None for sampled in is_trained[:MAX_TOKENS])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
