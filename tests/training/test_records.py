"""A finished step leaves its file and its numbers; what is known of step ends is not looked for again."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fakes import make_group, read_rollouts
from priml.batch import TokenScores
from priml.learners.base import ProcessRewards
from priml.runs.schemas import ROLLOUTS
from priml.training.collect import FilterBand, GroupPool, collate_groups
from priml.training.metrics import repetition
from priml.training.records import (
    FinishedStep,
    LocalRecords,
    add_training_columns,
    annotate,
    rollout_rows,
    write_rollouts,
)

CONTRACT = """
    step problem_id source sample weight_version prm_version prompt response response_ids segments turn_rewards
    finish_reason outcome verdict reason answer gold filter_status step_ends sampler_logprobs old_logprobs entropies
    prm_logprobs ref_logprobs process_rewards advantages
""".split()  # noqa: SIM905  (a list of 26 quoted names is harder to compare with the documentation)


def never(ids):
    raise AssertionError("the ends are known")


def with_ends(group, ends):
    return replace(
        group, trajectories=tuple(replace(c, step_ends=np.array(ends, dtype=np.int32)) for c in group.trajectories)
    )


@pytest.mark.parametrize("known", [False, True])
def test_a_step_leaves_a_file_and_numbers_of_kept_and_dropped_responses(tmp_path, known):
    pool = GroupPool(wanted=1, band=FilterBand(low=0.2, high=0.8), max_rounds=1)
    groups = [make_group([1.0, 0.0]), make_group([1.0, 1.0])]
    pool.add([with_ends(group, [0, 1]) for group in groups] if known else groups)
    records = LocalRecords(never if known else lambda ids: [0, len(ids) - 1])
    batch = records.collate(pool.kept, 3)
    zeros_BT = torch.zeros(batch.mask_BT.shape)
    batch = batch.with_old(TokenScores(zeros_BT - 1.0, zeros_BT))
    (tmp_path / "rollouts").mkdir()
    path = tmp_path / "rollouts" / "000003.parquet"
    numbers = records.save(path, FinishedStep(3, pool.groups, batch, None, zeros_BT + 2.0))
    rows = read_rollouts(tmp_path, 3)
    assert [row["filter_status"] for row in rows] == ["kept", "kept", "too_easy", "too_easy"]
    assert [row["step_ends"] for row in rows] == [[0, 1]] * 4
    assert [row["advantages"] for row in rows] == [[2.0, 2.0]] * 2 + [None] * 2
    assert (numbers["filter/kept"], numbers["filter/too_easy"], numbers["tokens/sampled"]) == (1, 1, 8)
    assert "sampler/mismatch_mean" in numbers


def test_what_was_found_in_the_tokens_is_not_looked_for_again(tmp_path):
    group = make_group([1.0, 0.0])
    pool = GroupPool(wanted=1, band=None, max_rounds=1)
    known = [replace(c, repetition=0.25) for c in with_ends(group, [1]).trajectories]
    pool.add([replace(group, trajectories=tuple(known))])
    records = LocalRecords(never)
    batch = records.collate(pool.kept, 1)
    zeros_BT = torch.zeros(batch.mask_BT.shape)
    batch = batch.with_old(TokenScores(zeros_BT, zeros_BT))
    numbers = records.save(tmp_path / "1.parquet", FinishedStep(1, pool.groups, batch, None, zeros_BT))
    assert numbers["response/repetition"] == 0.25


def test_a_trajectory_is_looked_over_once():
    (trajectory, _) = make_group([1.0, 0.0]).trajectories
    found = annotate(trajectory, lambda ids: [len(ids) - 1])
    assert (found.step_ends.tolist(), found.repetition) == ([1], repetition(trajectory.token_ids))
    assert annotate(found, never).step_ends is found.step_ends


# --- the file ----------------------------------------------------------------------------------------------------


def ends(ids):
    return [len(ids) - 1]


def rows_and_batch():
    kept, dropped = make_group([1.0, 0.0], name="kept"), make_group([None, 1.0], name="dropped")
    rows = rollout_rows(3, [(dropped, "undecided"), (kept, "kept")], ends)
    batch = collate_groups([kept], 3, step_ends=ends)
    ramp_BT = torch.arange(4.0).reshape(2, 2)
    return rows, batch.with_old(TokenScores(ramp_BT, ramp_BT + 10)), ramp_BT


def test_the_columns_are_those_of_the_contract_in_order():
    assert ROLLOUTS.names == CONTRACT


def test_dropped_rows_are_written_with_nulls_for_what_was_never_computed(tmp_path):
    rows, batch, ramp_BT = rows_and_batch()
    process = ProcessRewards(
        ramp_BT + 1,
        prm_logprobs_BT=ramp_BT + 2,
        ref_logprobs_BT=ramp_BT + 3,
        beta=0.1,
        prm_versions_B=torch.tensor([6, 7], dtype=torch.int32),
    )
    add_training_columns(rows, batch, process, ramp_BT + 4)
    write_rollouts(rows, tmp_path / "000003.parquet")
    table = pq.read_table(tmp_path / "000003.parquet")
    lost, right, kept, wrong = table.to_pylist()
    assert (lost["verdict"], lost["outcome"], lost["filter_status"]) == ("undecided", None, "undecided")
    assert (right["verdict"], right["outcome"], right["advantages"]) == ("correct", 1.0, None)
    assert lost["sampler_logprobs"] == [-0.5, -0.5]
    assert (kept["filter_status"], kept["old_logprobs"], kept["entropies"]) == ("kept", [0, 1], [10, 11])
    assert (wrong["process_rewards"], wrong["prm_logprobs"], wrong["ref_logprobs"]) == ([3, 4], [4, 5], [5, 6])
    assert wrong["advantages"] == [6, 7]
    assert [row["prm_version"] for row in (lost, right, kept, wrong)] == [None, None, 6, 7]
    assert table.schema.equals(ROLLOUTS)
    assert [path.name for path in tmp_path.iterdir()] == ["000003.parquet"]


def test_without_a_prm_its_columns_are_null():
    rows, batch, ramp_BT = rows_and_batch()
    add_training_columns(rows, batch, None, ramp_BT)
    columns = ("process_rewards", "prm_logprobs", "ref_logprobs", "prm_version")
    assert {rows[2][name] for name in columns} == {None}
    assert rows[2]["advantages"].tolist() == [0, 1]


def test_rows_and_batch_of_different_sizes_are_refused():
    rows, batch, ramp_BT = rows_and_batch()
    with pytest.raises(ValueError, match="zip"):
        add_training_columns(rows[:3], batch, None, ramp_BT)


def test_a_file_in_many_row_groups_is_what_one_table_of_the_same_rows_would_be(tmp_path, monkeypatch):
    rows, batch, ramp_BT = rows_and_batch()
    add_training_columns(rows, batch, None, ramp_BT)
    rows = rows * 5
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]
    monkeypatch.setattr("priml.training.records._GROUP_TOKENS", 7)  # three responses of two tokens fit, four do not
    write_rollouts(rows, tmp_path / "000003.parquet")
    assert pq.read_metadata(tmp_path / "000003.parquet").num_row_groups == 7
    found = pq.read_table(tmp_path / "000003.parquet")
    assert found.combine_chunks().equals(pa.Table.from_pylist(plain, schema=ROLLOUTS))


def test_no_rows_make_an_empty_file_with_all_columns(tmp_path):
    write_rollouts([], tmp_path / "000003.parquet")
    table = pq.read_table(tmp_path / "000003.parquet")
    assert (table.num_rows, table.schema.names) == (0, CONTRACT)


def test_a_row_group_that_cannot_be_written_leaves_no_file_with_the_final_name(tmp_path):
    rows, *_ = rows_and_batch()
    rows[1]["sample"] = "not a number"
    with pytest.raises(pa.ArrowInvalid):
        write_rollouts(rows, tmp_path / "000003.parquet")
    assert [path.name for path in tmp_path.iterdir()] == [".000003.parquet.partial"]
