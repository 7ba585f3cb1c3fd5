"""The batch of a step from its responses; and the rollout file and the metrics of a finished step.

A rollout file is enough to replay rewards and advantages without a model. A row is a dictionary by the names of
`ROLLOUTS`. Numbers per token are numpy arrays, or views into the batch: rows need next to no memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor
from typing_extensions import TypeVar

from priml.batch import Batch
from priml.files import put_in_place
from priml.learners.base import ProcessRewards
from priml.runs.schemas import ROLLOUTS
from priml.training.collect import FilterStatus, collate_groups, find_step_ends
from priml.training.metrics import mismatch_metrics, repetition, rollout_metrics, staleness_metrics
from priml.types import Group, Trajectory

_GROUP_TOKENS = 2**22
"""Response tokens of a row group, or one response. A row group is in memory twice while the file is written."""


def annotate(trajectory: Trajectory, step_ends: Callable[[Sequence[int]], list[int]]) -> Trajectory:
    """The trajectory with its step ends and its repetition. Both read every token: samplers do it in parallel."""
    return replace(
        trajectory, step_ends=find_step_ends(trajectory, step_ends), repetition=repetition(trajectory.trained_ids)
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

    def save_untrained(self, path: Path, step: int, groups: Sequence[tuple[Group, FilterStatus]]) -> None:
        """Write the responses of a step that could not be trained on."""
        ...


class LocalRecords:
    """The `Records` in this process."""

    def __init__(self, step_ends: Callable[[Sequence[int]], list[int]]) -> None:
        """`step_ends` finds the indices of the tokens that end a step."""
        self._step_ends = step_ends

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        return collate_groups(groups, step, step_ends=self._step_ends)

    def save_untrained(self, path: Path, step: int, groups: Sequence[tuple[Group, FilterStatus]]) -> None:
        write_rollouts(rollout_rows(step, groups, self._step_ends), path)

    def save(self, path: Path, done: FinishedStep, sources: Sequence[str] = ()) -> dict[str, float]:
        rows = rollout_rows(done.step, done.groups, self._step_ends)
        add_training_columns(rows, done.batch, done.process, done.advantages_BT)
        write_rollouts(rows, path)
        return {
            **rollout_metrics(rows, done.groups, sources),
            **mismatch_metrics(done.batch),
            **staleness_metrics(done.batch),
        }


def rollout_rows(
    step: int, groups: Sequence[tuple[Group, FilterStatus | None]], step_ends: Callable[[Sequence[int]], list[int]]
) -> list[dict[str, Any]]:
    """One row per sampled response, including dropped ones. What was never computed is None.

    Outside of training a group has no filter status (None).
    """
    return [
        {
            **dict.fromkeys(ROLLOUTS.names),
            "step": step,
            "problem_id": group.prompt.problem.id,
            "source": group.prompt.problem.source,
            "sample": trajectory.sample,
            "weight_version": trajectory.weight_version,
            "prompt": group.prompt.text,
            "response": trajectory.text,
            "response_ids": trajectory.token_ids,
            "segments": [
                {"num_tokens": len(segment.token_ids), "weight_version": segment.weight_version}
                for segment in trajectory.segments
            ],
            "turn_rewards": trajectory.turn_rewards,
            "finish_reason": trajectory.finish_reason,
            "outcome": verdict.score,
            "verdict": verdict.label,
            "reason": verdict.reason,
            "answer": verdict.answer,
            "gold": group.prompt.problem.answer,
            "filter_status": filter_status,
            # Those of kept responses are in the batch already, and finding them decodes every token.
            "step_ends": None if filter_status == "kept" else find_step_ends(trajectory, step_ends),
            "sampler_logprobs": trajectory.logprobs,
        }
        for group, filter_status in groups
        for trajectory, verdict in zip(group.trajectories, group.verdicts, strict=True)
    ]


def add_training_columns(
    rows: Sequence[dict[str, Any]], batch: Batch, process: ProcessRewards | None, advantages_BT: Tensor
) -> None:
    """Fill in what training computed for the kept rows. The batch has the same order."""
    assert batch.old is not None, "the batch has been trained on"
    columns = {
        "old_logprobs": batch.old.logprobs_BT,
        "entropies": batch.old.entropies_BT,
        "advantages": advantages_BT,
    }
    if process is not None:
        columns |= {
            "prm_logprobs": process.prm_logprobs_BT,
            "ref_logprobs": process.ref_logprobs_BT,
            "process_rewards": process.rewards_BT,
        }
    kept = [row for row in rows if row["filter_status"] == "kept"]
    for i, (row, length) in enumerate(zip(kept, batch.response_lengths_B.tolist(), strict=True)):
        for name, values_BT in columns.items():
            if values_BT is not None:
                row[name] = values_BT[i, :length].numpy()
        row["step_ends"] = batch.step_ends[i]
        if process is not None and process.prm_versions_B is not None:
            row["prm_version"] = int(process.prm_versions_B[i])


def write_rollouts(rows: Sequence[Mapping[str, Any]], path: Path, schema: pa.Schema = ROLLOUTS) -> None:
    """Write them, whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(aside, schema) as file:
        for chosen in _row_groups(rows):
            file.write_table(pa.Table.from_pylist(chosen, schema=schema))
    put_in_place(aside, path)


def _row_groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    chosen: list[Mapping[str, Any]] = []
    tokens = 0
    for row in rows:
        length = len(row["response_ids"])
        if chosen and tokens + length > _GROUP_TOKENS:
            yield chosen
            chosen, tokens = [], 0
        chosen.append(row)
        tokens += length
    if chosen:
        yield chosen
