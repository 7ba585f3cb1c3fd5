"""Masked reductions, whitening, discounted sums and group sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from priml.maths.masking import (
    discounted_suffix_sum,
    group_max,
    group_mean,
    group_size,
    group_sum,
    last_token,
    masked_mean,
    masked_sum,
    whiten,
)

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
X = torch.tensor([[1.0, 2.0, 4.0], [5.0, 7.0, 7.0], [7.0, 7.0, 7.0]])


def test_masked_sum_and_mean_count_valid_tokens_only() -> None:
    assert masked_sum(X, MASK) == 12.0
    assert masked_mean(X, MASK) == 3.0
    assert masked_sum(X, MASK, dim=1).tolist() == [7.0, 5.0, 0.0]
    torch.testing.assert_close(masked_mean(X, MASK, dim=1), torch.tensor([7 / 3, 5.0, 0.0]))


def test_an_empty_mask_has_sum_and_mean_zero() -> None:
    assert masked_sum(X, MASK & False) == 0.0
    assert masked_mean(X, MASK & False) == 0.0


def test_whitened_tokens_have_mean_zero_and_sample_variance_one() -> None:
    white = whiten(X, MASK)
    torch.testing.assert_close(white[MASK].mean(), torch.tensor(0.0))
    torch.testing.assert_close(white[MASK].var(), torch.tensor(1.0))
    assert not white[~MASK].any()


def test_whitening_one_valid_token_gives_zero_and_none_gives_zeros() -> None:
    x = X.clone().requires_grad_()
    one = whiten(x, MASK & torch.tensor([[True], [False], [False]]) & torch.tensor([True, False, False]))
    assert not one.any()
    one.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not whiten(X, MASK & False).any()


def _suffix_sums_by_definition(x_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    out = torch.zeros_like(x_BT)
    for row, (x, mask) in enumerate(zip(x_BT, mask_BT, strict=True)):
        running = 0.0
        for t in reversed(range(len(x))):
            running = float(x[t]) + gamma * running if mask[t] else 0.0
            out[row, t] = running
    return out


@given(seed=st.integers(0, 2**16), num_tokens=st.integers(1, 40), gamma=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]))
@settings(max_examples=60, deadline=None)
def test_suffix_sums_by_doubling_are_the_recursion(
    random_batch: Callable[..., Any], seed: int, num_tokens: int, gamma: float
) -> None:
    b = random_batch(seed, num_tokens=num_tokens)
    got = discounted_suffix_sum(b.rewards_BT, b.mask_BT, gamma=gamma)
    expected = _suffix_sums_by_definition(b.rewards_BT, b.mask_BT, gamma)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 0.99, 1.0])
def test_suffix_sums_of_long_responses_keep_their_digits_in_float32(gamma: float) -> None:
    x = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(3000) < torch.tensor([[3000], [2500]])
    expected = _suffix_sums_by_definition(x.double(), mask, gamma)
    torch.testing.assert_close(discounted_suffix_sum(x, mask, gamma=gamma).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_a_discount_outside_zero_and_one_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="discount must lie in"):
        discounted_suffix_sum(X, MASK, gamma=gamma)


def test_padding_may_stand_before_the_response() -> None:
    mask = torch.tensor([[False, True, True]])
    x = torch.tensor([[float("nan"), 2.0, 4.0]])
    assert discounted_suffix_sum(x, mask, gamma=0.5).tolist() == [[0.0, 4.0, 4.0]]
    assert last_token(mask).tolist() == [[False, False, True]]


def test_last_token_marks_the_end_of_each_response_and_nothing_in_an_empty_one() -> None:
    assert last_token(MASK).tolist() == [[False, False, True], [True, False, False], [False, False, False]]


def test_groups_are_found_by_any_integer_id_wherever_their_rows_stand() -> None:
    groups = torch.tensor([900, -3, 900, 0, -3, 900])
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 8.0])
    assert group_sum(x, groups).tolist() == [12.0, 7.0, 12.0, 4.0, 7.0, 12.0]
    assert group_size(groups).tolist() == [3, 2, 3, 1, 2, 3]
    assert group_mean(x, groups).tolist() == [4.0, 3.5, 4.0, 4.0, 3.5, 4.0]
    assert group_max(x, groups).tolist() == [8.0, 5.0, 8.0, 4.0, 5.0, 8.0]
