"""The batch of a step from its responses; and the rollout file and the metrics of a finished step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor
from typing_extensions import TypeVar

from priml.batch import Batch
from priml.learners.base import ProcessRewards
from priml.training.collect import FilterStatus, collate_groups, find_step_ends
from priml.training.metrics import mismatch_metrics, repetition, rollout_metrics
from priml.training.rollouts import add_training_columns, rollout_rows, write_rollouts
from priml.types import Completion, Group


def annotate(completion: Completion, step_ends: Callable[[Sequence[int]], list[int]]) -> Completion:
    """The completion with its step ends and its repetition. Both read every token: samplers do it in parallel."""
    return replace(
        completion, step_ends=find_step_ends(completion, step_ends), repetition=repetition(completion.token_ids)
    )


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """What a step sampled, and what training computed of it."""

    step: int
    groups: Sequence[tuple[Group, FilterStatus]]
    """Every group of the step, in the order it was sampled."""
    batch: Batch
    """The kept ones."""
    process: ProcessRewards | None
    """None without a PRM."""
    advantages_BT: Tensor


BatchT_co = TypeVar("BatchT_co", covariant=True, default=Batch)


class Records(Protocol[BatchT_co]):
    """Turns responses into a batch, and a finished step into a file, in the process that has the tokens."""

    def collate(self, groups: Sequence[Group], step: int) -> BatchT_co:
        """Decided groups as one batch."""
        ...

    def save(self, path: Path, done: FinishedStep, sources: Sequence[str] = ()) -> dict[str, float]:
        """Write the rollout file of a step; return its metrics, some of them for each of `sources` as well."""
        ...


class LocalRecords:
    """The `Records` in this process."""

    def __init__(self, step_ends: Callable[[Sequence[int]], list[int]]) -> None:
        """`step_ends` finds the indices of the tokens that end a step."""
        self._step_ends = step_ends

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        return collate_groups(groups, step, step_ends=self._step_ends)

    def save(self, path: Path, done: FinishedStep, sources: Sequence[str] = ()) -> dict[str, float]:
        rows = rollout_rows(done.step, done.groups, self._step_ends)
        add_training_columns(rows, done.batch, done.process, done.advantages_BT)
        write_rollouts(rows, path)
        return rollout_metrics(rows, done.groups, sources) | mismatch_metrics(done.batch)
