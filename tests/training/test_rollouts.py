import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fakes import make_group
from priml.batch import TokenScores
from priml.learners.base import ProcessRewards
from priml.runs.schemas import ROLLOUTS
from priml.training.collect import collate_groups
from priml.training.rollouts import add_training_columns, rollout_rows, write_rollouts

CONTRACT = """
    step problem_id source sample weight_version prm_version prompt response response_ids finish_reason outcome verdict
    reason answer gold filter_status step_ends sampler_logprobs old_logprobs entropies prm_logprobs ref_logprobs
    process_rewards advantages
""".split()  # noqa: SIM905  (a list of 24 quoted names is harder to compare with the documentation)


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
    monkeypatch.setattr("priml.training.rollouts._GROUP_TOKENS", 7)  # three responses of two tokens fit, four do not
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
