"""The clipped losses: values, gradients, exact split over micro-batches; KL estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from priml.maths.policy_loss import KL_ESTIMATORS, clipped_surrogate, clipped_value_loss, kl_k1, kl_k3

Aggregate = Literal["token_mean", "sequence_mean"]
AGGREGATES: tuple[Aggregate, ...] = ("token_mean", "sequence_mean")
ONE_TOKEN = torch.ones(1, 1, dtype=torch.bool)


def _logprobs(seed: int, b: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old_BT = -torch.rand(b.rewards_BT.shape, generator=generator, dtype=torch.float64)
    return old_BT + 0.4 * torch.randn(old_BT.shape, generator=generator, dtype=torch.float64), old_BT


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside the bounds: the plain policy gradient
        (1.5, 2.0, -2.6, 0.0),  # good token already pushed up enough
        (0.5, 2.0, -1.0, -2.0),  # good token that fell: pulled back up
        (0.5, -2.0, 1.6, 0.0),  # bad token already pushed down enough (clip_low = 0.2)
        (1.5, -2.0, 3.0, 2.0),  # bad token that rose: pushed down
    ],
)
def test_clipping_only_stops_moves_that_went_far_enough(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    logprobs = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    got, stats = clipped_surrogate(
        logprobs,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[advantage]], dtype=torch.float64),
        ONE_TOKEN,
        clip_low=0.2,
        clip_high=0.3,
        aggregate="token_mean",
    )
    got.backward()
    assert logprobs.grad is not None
    assert got.item() == pytest.approx(loss)
    assert float(logprobs.grad) == pytest.approx(slope * ratio)
    assert float(stats.clip_fraction) == float(slope == 0.0)
    assert float(stats.ratio_max) == pytest.approx(ratio)


def test_at_ratio_one_the_gradient_is_the_policy_gradient(random_batch: Callable[..., Any]) -> None:
    b = random_batch(0)
    logprobs = _logprobs(0, b)[0].requires_grad_()
    loss, _ = clipped_surrogate(
        logprobs, logprobs, b.rewards_BT, b.mask_BT, clip_low=0.2, clip_high=0.2, aggregate="token_mean"
    )
    loss.backward()
    expected = -(b.rewards_BT / b.mask_BT.sum()).masked_fill(~b.mask_BT, 0.0)
    torch.testing.assert_close(logprobs.grad, expected)


def test_advantages_and_old_logprobs_receive_no_gradient(random_batch: Callable[..., Any]) -> None:
    b = random_batch(0)
    new, old = (x.requires_grad_() for x in _logprobs(0, b))
    advantages = b.rewards_BT.clone().requires_grad_()
    loss, _ = clipped_surrogate(new, old, advantages, b.mask_BT, clip_low=0.2, clip_high=0.2, aggregate="token_mean")
    loss.backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("aggregate", AGGREGATES)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_loss_gradient_and_stats_add_up_over_micro_batches(
    random_batch: Callable[..., Any], aggregate: Aggregate, seed: int
) -> None:
    b = random_batch(seed)
    new_BT, old_BT = _logprobs(seed, b)
    size = len(b.outcomes_B)
    denominator = float(b.mask_BT.sum()) if aggregate == "token_mean" else float(size)

    def run(index: Tensor, denominator: float | None, logprobs_BT: Tensor) -> tuple[Tensor, Any]:
        return clipped_surrogate(
            logprobs_BT[index],
            old_BT[index],
            b.rewards_BT[index],
            b.mask_BT[index],
            clip_low=0.2,
            clip_high=0.3,
            aggregate=aggregate,
            denominator=denominator,
        )

    whole_leaf, split_leaf = new_BT.clone().requires_grad_(), new_BT.clone().requires_grad_()
    whole, whole_stats = run(torch.arange(size), None, whole_leaf)
    whole.backward()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    parts = [run(index, denominator, split_leaf) for index in order.split([1, size - 4, 3])]
    split = torch.stack([loss for loss, _ in parts]).sum()
    split.backward()
    torch.testing.assert_close((split, split_leaf.grad), (whole, whole_leaf.grad))
    stats = parts[0][1] + parts[1][1] + parts[2][1]
    for name in ("tokens", "clip_fraction", "kl_k1", "kl_k3", "ratio_max"):
        torch.testing.assert_close(getattr(stats, name), getattr(whole_stats, name))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_response_without_tokens_counts_zero(aggregate: Aggregate) -> None:
    new = torch.tensor([[0.0, 0.0], [float("nan"), float("nan")]]).requires_grad_()
    mask = torch.tensor([[True, True], [False, False]])
    loss, stats = clipped_surrogate(new, new, torch.ones(2, 2), mask, clip_low=0.2, clip_high=0.2, aggregate=aggregate)
    loss.backward()
    assert loss.item() == (-1.0 if aggregate == "token_mean" else -0.5)
    assert new.grad is not None
    assert not new.grad[1].any()
    assert float(stats.tokens) == 2


def test_a_batch_without_tokens_has_loss_zero() -> None:
    x = torch.zeros(2, 2)
    loss, stats = clipped_surrogate(x, x, x, x > 1, clip_low=0.2, clip_high=0.2, aggregate="token_mean")
    assert loss == 0.0
    assert stats.clip_fraction == 0.0
    assert stats.ratio_max == 0.0


def test_an_unknown_aggregate_is_refused() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="'token_mean' or 'sequence_mean'"):
        clipped_surrogate(x, x, x, ONE_TOKEN, clip_low=0.2, clip_high=0.2, aggregate="mean")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_gradients_agree_with_finite_differences(random_batch: Callable[..., Any], aggregate: Aggregate) -> None:
    b = random_batch(5, num_tokens=3)
    new_BT, old_BT = _logprobs(5, b)
    new_BT.requires_grad_()

    def surrogate(logprobs_BT: Tensor) -> Tensor:
        return clipped_surrogate(
            logprobs_BT, old_BT, b.rewards_BT, b.mask_BT, clip_low=0.2, clip_high=0.3, aggregate=aggregate
        )[0]

    assert torch.autograd.gradcheck(surrogate, new_BT)
    assert torch.autograd.gradcheck(
        lambda values_BT: clipped_value_loss(values_BT, old_BT, b.rewards_BT, b.mask_BT, clip=0.3), new_BT
    )


def test_value_loss_adds_up_over_micro_batches(random_batch: Callable[..., Any]) -> None:
    b = random_batch(2)
    new_BT, old_BT = _logprobs(2, b)
    whole = clipped_value_loss(new_BT, old_BT, b.rewards_BT, b.mask_BT, clip=0.3)
    tokens = float(b.mask_BT.sum())
    parts = [
        clipped_value_loss(new_BT[i], old_BT[i], b.rewards_BT[i], b.mask_BT[i], clip=0.3, denominator=tokens)
        for i in torch.arange(len(new_BT)).split(2)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_kl_estimators_have_the_right_mean_over_the_sampling_distribution() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    mask = torch.ones(1, 3, dtype=torch.bool)
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((p * estimator(p.log()[None], q.log()[None], mask)).sum(), exact)


def test_gradient_of_k2_is_the_gradient_of_the_divergence() -> None:
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.4, 0.35, 0.25]], dtype=torch.float64)
    logp = logits.log_softmax(0)[None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - q.log())).sum(), logits, retain_graph=True)
    sampled = logp.detach().exp() * KL_ESTIMATORS["k2"](logp, q.log(), mask)
    (estimated,) = torch.autograd.grad(sampled.sum(), logits)
    torch.testing.assert_close(estimated, exact)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_k2_and_k3_are_never_negative(random_batch: Callable[..., Any], seed: int) -> None:
    b = random_batch(seed)
    new_BT, old_BT = _logprobs(seed, b)
    for name in ("k2", "k3"):
        assert (KL_ESTIMATORS[name](new_BT, old_BT, b.mask_BT) >= 0).all()
