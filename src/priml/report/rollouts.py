"""The responses a report shows: which ones, cut into tokens, with the numbers of each token."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from priml.data.steps import text_growth
from priml.report.curves import RunLog

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PER_STEP = 8
"""Responses shown per step; half of them correct where there are enough."""
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


@dataclass(frozen=True, slots=True)
class Response:
    """One row of a rollout file. A value the run never computed is None."""

    step: int
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


@dataclass(frozen=True, slots=True)
class Chosen:
    """The responses to show, and what they were chosen from."""

    responses: tuple[Response, ...]
    num_responses: int
    """Responses on record in all steps."""
    num_steps: int
    """Steps with a rollout file."""
    limits: Mapping[str, float]
    """Where the colour scale of process rewards and advantages saturates, the same for every response shown, so that
    colours compare. Absent when all values are 0 or none was recorded."""
    notes: tuple[str, ...]


def choose_responses(log: RunLog) -> Chosen:
    """Responses from the first, the middle and the last step: pairs of right and wrong answers to a prompt first."""
    notes: list[str] = []
    files = log.rollouts
    wanted = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    tokenizer = load_tokenizer(log.folder.tokenizer / "tokenizer.json")
    if files and tokenizer is None:
        notes.append("There is no readable tokenizer/tokenizer.json: tokens are shown by number, the text above them.")
    responses: list[Response] = []
    for path in (files[i] for i in wanted):
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            notes.append(f"rollouts/{path.name} cannot be read ({str(error).splitlines()[0]}).")
            continue
        rows = table.take(pick_rows(table)).to_pylist()
        responses += [read_response(row, int(path.stem), tokenizer) for row in rows]
    return Chosen(
        responses=tuple(responses),
        num_responses=sum(_num_rows(path) for path in files),
        num_steps=len(files),
        limits=colour_limits(responses),
        notes=tuple(notes),
    )


def pick_rows(table: pa.Table) -> list[int]:
    """Up to `PER_STEP` row numbers of one step's rollouts, right and wrong in equal number where there are enough.

    Rows with token rewards come before those without, prompts answered both right and wrong before the others, and
    one response of each prompt before a second one. Rows of a prompt stand together, right before wrong.
    """
    verdicts = _column(table, "verdict")
    problems = _column(table, "problem_id")
    has_numbers = (
        table["advantages"].is_valid().to_pylist() if "advantages" in table.column_names else [False] * table.num_rows
    )
    labels: dict[Any, set[Any]] = {}
    for problem, verdict in zip(problems, verdicts, strict=True):
        labels.setdefault(problem, set()).add(verdict)
    seen: Counter[tuple[Any, Any]] = Counter()
    order: list[tuple[bool, bool, int, int]] = []
    for i, (problem, verdict) in enumerate(zip(problems, verdicts, strict=True)):
        order.append((not has_numbers[i], not {"correct", "wrong"} <= labels[problem], seen[problem, verdict], i))
        seen[problem, verdict] += 1
    ranked = [row for *_, row in sorted(order)]
    right = [i for i in ranked if verdicts[i] == "correct"]
    others = [i for i in ranked if verdicts[i] != "correct"]
    half = PER_STEP // 2
    num_right = min(len(right), max(half, PER_STEP - len(others)))
    picked = right[:num_right] + others[: PER_STEP - num_right]
    first_row = {problem: i for i, problem in reversed(list(enumerate(problems)))}
    return sorted(picked, key=lambda i: (first_row[problems[i]], verdicts[i] != "correct", i))


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


def read_response(row: Mapping[str, Any], step: int, tokenizer: Tokenizer | None) -> Response:
    """A row of a rollout file, or of the scores of `priml prm`."""
    ids = row.get("response_ids") or []
    shown = tuple(ids[:MAX_TOKENS])
    # The file counts trained tokens, the page all of them. Files of one turn, and old ones, have no others.
    segments = row.get("segments") or [{"num_tokens": len(ids), "weight_version": 0}]
    is_trained = [s["weight_version"] is not None for s in segments for _ in range(s["num_tokens"])]
    trained = [i for i, sampled in enumerate(is_trained) if sampled]
    ends = (trained[end] for end in row.get("step_ends") or [] if end < len(trained))
    return Response(
        step=step,
        sample=row.get("sample"),
        weight_version=row.get("weight_version"),
        outcome=_finite(row.get("outcome")),
        filter_status=row.get("filter_status"),
        texts={name: row[name] for name in _TEXT_COLUMNS if name in row},
        num_tokens=len(ids),
        token_ids=shown,
        pieces=None if tokenizer is None else token_pieces(shown, tokenizer),
        step_ends=tuple(end for end in ends if end < len(shown)),
        observed=tuple(i for i, sampled in enumerate(is_trained[:MAX_TOKENS]) if not sampled),
        numbers={name: _numbers(row[name], is_trained) for name in TOKEN_COLUMNS if name in row},
    )


def _numbers(values: Sequence[float | None] | None, is_trained: Sequence[bool]) -> tuple[float | None, ...] | None:
    if values is None or len(values) != sum(is_trained):
        return None
    of_trained = iter(values)
    return tuple(_finite(next(of_trained)) if sampled else None for sampled in is_trained[:MAX_TOKENS])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _num_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError):
        return 0
