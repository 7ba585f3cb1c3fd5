"""The responses of a step as one parquet file: enough to replay rewards and advantages without a model.

A row is a dictionary by the names of `ROLLOUTS`. Numbers per token are numpy arrays: those of the completion, or views
into the batch. So rows need next to no memory of their own, however long the responses are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from priml.batch import Batch
from priml.learners.base import ProcessRewards
from priml.runs.schemas import ROLLOUTS
from priml.training.collect import FilterStatus, find_step_ends
from priml.types import Group

_GROUP_TOKENS = 2**22
"""Response tokens of a row group, or one response. A row group is in memory twice while the file is written."""


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
            "sample": completion.sample,
            "weight_version": completion.weight_version,
            "prompt": group.prompt.text,
            "response": completion.text,
            "response_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "outcome": verdict.score,
            "verdict": verdict.label,
            "reason": verdict.reason,
            "answer": verdict.answer,
            "gold": group.prompt.problem.answer,
            "filter_status": filter_status,
            # Those of kept responses are in the batch already, and finding them decodes every token.
            "step_ends": None if filter_status == "kept" else find_step_ends(completion, step_ends),
            "sampler_logprobs": completion.logprobs,
        }
        for group, filter_status in groups
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
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


def write_rollouts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write them, whole or not at all."""
    aside = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(aside, ROLLOUTS) as file:
        for chosen in _row_groups(rows):
            file.write_table(_table(chosen))
    aside.replace(path)


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


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = [_column([row[field.name] for row in rows], field.type) for field in ROLLOUTS]
    return pa.Table.from_arrays(columns, schema=ROLLOUTS)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """A column of arrays is built from them directly, without a Python object for each number."""
    if not pa.types.is_list(kind):
        return pa.array(values, type=kind)
    known = [value for value in values if value is not None]
    offsets = np.cumsum([0, *(0 if value is None else len(value) for value in values)], dtype=np.int32)
    numbers = pa.array(np.concatenate(known) if known else [], type=kind.value_type)
    return pa.ListArray.from_arrays(offsets, numbers, type=kind, mask=pa.array([value is None for value in values]))
