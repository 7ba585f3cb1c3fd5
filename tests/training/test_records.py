"""A finished step leaves its file and its numbers; what is known of step ends is not looked for again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fakes import make_group, read_rollouts
from priml.batch import TokenScores
from priml.training.collect import FilterBand, GroupPool
from priml.training.metrics import repetition
from priml.training.records import FinishedStep, LocalRecords, annotate


def never(ids):
    raise AssertionError("the ends are known")


def with_ends(group, ends):
    return replace(
        group, completions=tuple(replace(c, step_ends=np.array(ends, dtype=np.int32)) for c in group.completions)
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
    known = [replace(c, repetition=0.25) for c in with_ends(group, [1]).completions]
    pool.add([replace(group, completions=tuple(known))])
    records = LocalRecords(never)
    batch = records.collate(pool.kept, 1)
    zeros_BT = torch.zeros(batch.mask_BT.shape)
    batch = batch.with_old(TokenScores(zeros_BT, zeros_BT))
    numbers = records.save(tmp_path / "1.parquet", FinishedStep(1, pool.groups, batch, None, zeros_BT))
    assert numbers["response/repetition"] == 0.25


def test_a_completion_is_looked_over_once():
    (completion, _) = make_group([1.0, 0.0]).completions
    found = annotate(completion, lambda ids: [len(ids) - 1])
    assert (found.step_ends.tolist(), found.repetition) == ([1], repetition(completion.token_ids))
    assert annotate(found, never).step_ends is found.step_ends
