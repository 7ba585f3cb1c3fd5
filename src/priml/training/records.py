"""What is made of the responses of a step besides learning: the batch, the rollout file, the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from priml.batch import Batch
from priml.learners.base import ProcessRewards
from priml.training.alarms import repetition
from priml.training.collect import FilterStatus, collate_groups, find_step_ends
from priml.training.metrics import mismatch_metrics, rollout_metrics
from priml.training.rollouts import add_training_columns, rollout_rows, write_rollouts
from priml.types import Completion, Group


def annotate(completion: Completion, step_ends: Callable[[Sequence[int]], list[int]]) -> Completion:
    """The completion with what is to be found in its tokens one by one, which takes its time: for whoever sampled it,
    beside others who do the same."""
    return replace(
        completion, step_ends=find_step_ends(completion, step_ends), repetition=repetition(completion.token_ids)
    )


class Records(Protocol):
    """Works where the tokens of a step lie: in this process, or on a cluster."""

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        """Decided groups as one batch."""
        ...

    def keep(
        self,
        path: Path,
        judged: Sequence[tuple[Group, FilterStatus]],
        batch: Batch,
        process: ProcessRewards,
        advantages_BT: Tensor,
        sources: Sequence[str] = (),
    ) -> dict[str, float]:
        """Write the rollout file of a finished step; its numbers, `sources` apart."""
        ...


class LocalRecords:
    """The `Records` of whoever calls."""

    def __init__(self, step_ends: Callable[[Sequence[int]], list[int]]) -> None:
        """`step_ends` finds the indices of the tokens that end a step."""
        self._step_ends = step_ends

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        """Decided groups as one batch."""
        return collate_groups(groups, step, step_ends=self._step_ends)

    def keep(
        self,
        path: Path,
        judged: Sequence[tuple[Group, FilterStatus]],
        batch: Batch,
        process: ProcessRewards,
        advantages_BT: Tensor,
        sources: Sequence[str] = (),
    ) -> dict[str, float]:
        """Write the rollout file of a finished step; its numbers, `sources` apart."""
        rows = rollout_rows(batch.step, judged, self._step_ends)
        add_training_columns(rows, batch, process, advantages_BT)
        write_rollouts(rows, path)
        return rollout_metrics(rows, judged, sources) | mismatch_metrics(batch)
