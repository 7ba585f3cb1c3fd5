import pyarrow.parquet as pq
import pytest
import torch

from fakes import make_group
from priml.batch import TokenScores
from priml.roles.base import ProcessRewards
from priml.train.collect import collate_groups
from priml.train.rollouts import SCHEMA, add_training_columns, rollout_rows, write_rollouts

CONTRACT = """
    step problem_id source sample weight_version prompt response response_ids finish_reason outcome verdict reason
    answer gold fate step_ends sampler_logprobs old_logprobs entropies prm_logprobs ref_logprobs process_rewards
    advantages
""".split()  # noqa: SIM905  (a list of 23 quoted names is harder to compare with the documentation)


def ends(ids):
    return [len(ids) - 1]


def rows_and_batch():
    kept, dropped = make_group([1.0, 0.0], name="kept"), make_group([None, 1.0], name="dropped")
    rows = rollout_rows(3, [(dropped, "undecided"), (kept, "kept")], ends)
    batch = collate_groups([kept], 3, step_ends=ends)
    ramp_BT = torch.arange(4.0).reshape(2, 2)
    return rows, batch.with_old(TokenScores(ramp_BT, ramp_BT + 10)), ramp_BT


def test_the_columns_are_those_of_the_contract_in_order():
    assert SCHEMA.names == CONTRACT


def test_dropped_rows_are_written_with_nulls_for_what_was_never_computed(tmp_path):
    rows, batch, ramp_BT = rows_and_batch()
    process = ProcessRewards(ramp_BT + 1, prm_logprobs_BT=ramp_BT + 2, ref_logprobs_BT=ramp_BT + 3, beta=0.1)
    add_training_columns(rows, batch, process, ramp_BT + 4)
    write_rollouts(rows, tmp_path / "000003.parquet")
    table = pq.read_table(tmp_path / "000003.parquet")
    lost, right, kept, wrong = table.to_pylist()
    assert (lost["verdict"], lost["outcome"], lost["fate"]) == ("undecided", None, "undecided")
    assert (right["verdict"], right["outcome"], right["advantages"]) == ("correct", 1.0, None)
    assert lost["sampler_logprobs"] == [-0.5, -0.5]
    assert (kept["fate"], kept["old_logprobs"], kept["entropies"]) == ("kept", [0, 1], [10, 11])
    assert (wrong["process_rewards"], wrong["prm_logprobs"], wrong["ref_logprobs"]) == ([3, 4], [4, 5], [5, 6])
    assert wrong["advantages"] == [6, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["000003.parquet"]


def test_without_a_prm_its_columns_are_null():
    rows, batch, ramp_BT = rows_and_batch()
    add_training_columns(rows, batch, ProcessRewards(torch.zeros(2, 2)), ramp_BT)
    assert {rows[2][name] for name in ("process_rewards", "prm_logprobs", "ref_logprobs")} == {None}
    assert rows[2]["advantages"] == [0, 1]


def test_rows_and_batch_of_different_sizes_are_refused():
    rows, batch, ramp_BT = rows_and_batch()
    with pytest.raises(ValueError, match="zip"):
        add_training_columns(rows[:3], batch, ProcessRewards(torch.zeros(2, 2)), ramp_BT)
