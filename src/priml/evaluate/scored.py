"""Responses with the rewards of their tokens and steps, and the file that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from priml.data.labelled import Response
from priml.evaluate.ranking import AGGREGATES
from priml.files import put_in_place
from priml.runs.schemas import SCORES


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response and what the PRM says of it."""

    response: Response
    prompt: str
    """As the model read it."""
    token_ids: tuple[int, ...]
    step_ends: tuple[int, ...]
    """Index of the last token of each step, among the trained tokens."""
    prm_logprobs: tuple[float, ...]
    ref_logprobs: tuple[float, ...]
    rewards: tuple[float, ...]
    """Per trained token."""
    step_rewards: tuple[float, ...]
    """Per step: the sum over its tokens."""


def write_scores(scored: Sequence[ScoredResponse], path: Path) -> None:
    """Write them, whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist([_row(one) for one in scored], schema=SCORES), aside)
    put_in_place(aside, path)


def _row(scored: ScoredResponse) -> dict[str, object]:
    response = scored.response
    return {
        "problem_id": response.problem.id,
        "source": response.problem.source,
        "prompt": scored.prompt,
        "response": response.text,
        "response_ids": scored.token_ids,
        "segments": [{"num_tokens": number, "weight_version": version} for number, version in response.segments or ()]
        or None,
        "outcome": response.outcome,
        "gold": response.problem.answer or None,
        "step_ends": scored.step_ends,
        "prm_logprobs": scored.prm_logprobs,
        "ref_logprobs": scored.ref_logprobs,
        "process_rewards": scored.rewards,
        "step_rewards": scored.step_rewards,
        **{f"score_{how}": score(scored.step_rewards) for how, score in AGGREGATES.items()},
    }
