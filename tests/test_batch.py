"""Groups as padded tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from priml.batch import Row, TokenScores, batches_by_length, collate

ROWS = [
    Row(prompt_ids=(5, 6, 7), response_ids=(8, 9), outcome=1.0, group=4, step_ends=(0, 1)),
    Row(prompt_ids=(5,), response_ids=(1, 2, 3), outcome=0.25, group=2, step_ends=(2,)),
    Row(prompt_ids=(9, 9), response_ids=(3,), outcome=0.0, group=4, step_ends=(0,)),
]


def test_the_response_follows_its_prompt_directly_and_zeros_follow_the_response() -> None:
    batch = collate(ROWS, step=7)

    assert batch.tokens_BL.tolist() == [[5, 6, 7, 8, 9], [5, 1, 2, 3, 0], [9, 9, 3, 0, 0]]
    assert batch.prompt_lengths_B.tolist() == [3, 1, 2]
    assert batch.response_lengths_B.tolist() == [2, 3, 1]


def test_rows_keep_their_order_outcomes_groups_and_step_ends() -> None:
    batch = collate(ROWS, step=7)

    assert (len(batch), batch.step) == (3, 7)
    assert batch.outcomes_B.tolist() == [1.0, 0.25, 0.0]
    assert batch.outcomes_B.dtype == torch.float32
    assert batch.groups_B.tolist() == [4, 2, 4]
    assert [ends.tolist() for ends in batch.step_ends] == [[0, 1], [2], [0]]


def test_the_mask_is_aligned_with_the_response_and_as_long_as_the_longest() -> None:
    assert collate(ROWS, step=0).mask_BT.int().tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_old_logprobs_are_there_once_the_policy_has_been_asked() -> None:
    batch = collate(ROWS, step=0)
    with pytest.raises(AssertionError, match="has not scored"):
        _ = batch.old_logprobs_BT
    scores = TokenScores(logprobs_BT=torch.full((3, 3), -1.0), entropies_BT=torch.zeros(3, 3))

    assert batch.with_old(scores).old_logprobs_BT is scores.logprobs_BT
    assert batch.old is None, "the batch itself does not change"


@pytest.mark.parametrize(("prompt", "response"), [((), (1,)), ((1,), ())])
def test_a_row_without_prompt_or_response_is_refused(prompt: tuple[int, ...], response: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=r"prompt token|at least one token"):
        collate([Row(prompt, response, outcome=1.0, group=0, step_ends=())], step=0)


def test_the_samplers_log_probs_are_padded_like_the_responses_and_all_or_nothing() -> None:
    said = [replace(row, sampler_logprobs=[-0.5 * (i + 1) for i in range(len(row.response_ids))]) for row in ROWS]
    padded_BT = collate(said, step=0).sampler_logprobs_BT
    assert padded_BT is not None
    assert padded_BT.tolist() == [[-0.5, -1.0, 0.0], [-0.5, -1.0, -1.5], [-0.5, 0.0, 0.0]]
    assert collate([*said[:2], ROWS[2]], step=0).sampler_logprobs_BT is None


def test_observations_stand_in_the_tokens_and_not_among_the_trained_ones() -> None:
    """Prompt 5 6; turn 1 2; observation 7 7 7; turn 3."""
    row = Row(
        prompt_ids=(5, 6),
        response_ids=(1, 2, 7, 7, 7, 3),
        outcome=1.0,
        group=0,
        step_ends=(1, 2),
        sampler_logprobs=(-1.0, -2.0, -3.0),
        is_trained=np.array([True, True, False, False, False, True]),
        weight_versions=np.array([4, 4, 5], np.int32),
    )
    batch = collate([row, replace(ROWS[1], sampler_logprobs=(0, 0, 0), weight_versions=np.zeros(3, np.int32))], step=0)

    assert batch.tokens_BL.tolist() == [[5, 6, 1, 2, 7, 7, 7, 3], [5, 1, 2, 3, 0, 0, 0, 0]]
    assert batch.loss_mask_BL.int().tolist() == [[0, 0, 1, 1, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0, 0, 0]]
    assert (batch.lengths_B.tolist(), batch.response_lengths_B.tolist()) == ([8, 4], [3, 3])
    assert batch.mask_BT.all()
    assert batch.sampler_logprobs_BT is not None
    assert batch.sampler_logprobs_BT[0].tolist() == [-1.0, -2.0, -3.0]
    assert batch.weight_versions_BT is not None
    assert batch.weight_versions_BT.tolist() == [[4, 4, 5], [0, 0, 0]]


def test_a_row_of_observations_alone_is_refused() -> None:
    with pytest.raises(AssertionError, match="that the policy sampled"):
        collate([replace(ROWS[0], is_trained=np.zeros(2, np.bool_))], step=0)


def test_rows_come_in_batches_of_about_one_length_and_none_is_lost() -> None:
    rows = [Row([1], [2] * length, outcome=0.0, group=0, step_ends=()) for length in (5, 1, 4, 2, 3)]
    batches = list(batches_by_length(rows, 2))
    assert [chosen for chosen, _ in batches] == [[1, 3], [4, 2], [0]]
    assert [batch.response_lengths_B.tolist() for _, batch in batches] == [[1, 2], [3, 4], [5]]
