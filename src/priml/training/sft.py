"""Examples of a supervised warm start, on their way into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from priml.batch import Batch, Row, collate


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the response to learn, EOS included, as tokens."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def collate_examples(examples: Sequence[Example], chosen: Sequence[int], step: int) -> Batch:
    """The batch of a step. There are no outcomes here (all 0), and every example is a group of its own."""
    rows = [
        Row(examples[i].prompt_ids, examples[i].response_ids, outcome=0.0, group=group, step_ends=())
        for group, i in enumerate(chosen)
    ]
    return collate(rows, step=step)
