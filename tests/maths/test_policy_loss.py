"""The clipped losses: values, gradients, exact split over micro-batches; KL estimators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from priml.maths.policy_loss import (
    KL_ESTIMATORS,
    SURROGATES,
    aggregate_tokens,
    clipped_surrogate,
    clipped_value_loss,
    importance_weights,
    kl_k1,
    kl_k3,
    kl_penalty,
)
from priml.names import AggregateName, KlEstimatorName, SurrogateName

AGGREGATES: tuple[AggregateName, ...] = ("token_mean", "sequence_mean")
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


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("aggregate", get_args(AggregateName))
@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_loss_gradient_and_stats_add_up_over_micro_batches(
    random_batch: Callable[..., Any], aggregate: AggregateName, surrogate: SurrogateName, seed: int
) -> None:
    b = random_batch(seed)
    new_BT, old_BT = _logprobs(seed, b)
    size = len(b.outcomes_B)
    denominator = {
        "token_mean": float(b.mask_BT.sum()),
        "sequence_mean": float(size),
        "constant_length": 10.0 * size,
    }[aggregate]

    def run(index: Tensor, logprobs_BT: Tensor) -> tuple[Tensor, Any]:
        return clipped_surrogate(
            logprobs_BT[index],
            old_BT[index],
            b.rewards_BT[index],
            b.mask_BT[index],
            clip_low=0.2,
            clip_high=0.3,
            aggregate=aggregate,
            surrogate=surrogate,
            dual_clip=None if surrogate == "cispo" else 1.5,
            denominator=denominator,
        )

    whole_leaf, split_leaf = new_BT.clone().requires_grad_(), new_BT.clone().requires_grad_()
    whole, whole_stats = run(torch.arange(size), whole_leaf)
    whole.backward()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    parts = [run(index, split_leaf) for index in order.split([1, size - 4, 3])]
    split = torch.stack([loss for loss, _ in parts]).sum()
    split.backward()
    torch.testing.assert_close((split, split_leaf.grad), (whole, whole_leaf.grad))
    stats = parts[0][1] + parts[1][1] + parts[2][1]
    for name in ("tokens", "clip_fraction", "kl_k1", "kl_k3", "ratio_max"):
        torch.testing.assert_close(getattr(stats, name), getattr(whole_stats, name))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_denominator_of_a_whole_batch_is_its_own_count(
    random_batch: Callable[..., Any], aggregate: AggregateName
) -> None:
    b = random_batch(1)
    count = float(b.mask_BT.sum()) if aggregate == "token_mean" else float(len(b.mask_BT))
    given = aggregate_tokens(b.rewards_BT, b.mask_BT, aggregate, denominator=count)
    assert torch.equal(aggregate_tokens(b.rewards_BT, b.mask_BT, aggregate), given)


def test_three_ways_to_make_one_number_of_many_tokens() -> None:
    # Responses of 1 and 3 tokens that sum to 4 and 6; the longest allowed has 5 tokens.
    loss = torch.tensor([[4.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    assert aggregate_tokens(loss, mask, "token_mean") == 10 / 4
    assert aggregate_tokens(loss, mask, "sequence_mean") == (4 + 2) / 2
    assert aggregate_tokens(loss, mask, "constant_length", denominator=2 * 5) == 10 / 10
    with pytest.raises(ValueError, match="'constant_length' needs its denominator: responses x the fixed length"):
        aggregate_tokens(loss, mask, "constant_length")


# Other surrogates


def _one_response(
    ratios: list[float], advantages: list[float], *, aggregate: AggregateName = "sequence_mean", **options: Any
) -> tuple[float, list[float], Any]:
    """Loss, gradient with respect to each log-probability, and statistics."""
    logprobs = torch.tensor([ratios], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, len(ratios), dtype=torch.bool)
    old = torch.zeros_like(logprobs)
    given = torch.tensor([advantages], dtype=torch.float64)
    bounds = {"clip_low": 0.2, "clip_high": 0.3} | options
    loss, stats = clipped_surrogate(logprobs, old, given, mask, aggregate=aggregate, **bounds)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad[0].tolist(), stats


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (2.9, -2.0, 5.8, 5.8),  # below three times: pushed down as ever
        (5.0, -2.0, 6.0, 0.0),  # PPO would take 10 and a gradient of 10
        (0.5, -2.0, 1.6, 0.0),  # the ordinary clip still acts
        (5.0, 2.0, -2.6, 0.0),  # good tokens have no dual clip
    ],
)
def test_dual_clip_bounds_the_loss_of_a_bad_token(ratio: float, advantage: float, loss: float, slope: float) -> None:
    got, gradient, stats = _one_response([ratio], [advantage], dual_clip=3.0)
    assert (got, gradient) == (pytest.approx(loss), pytest.approx([slope]))
    assert float(stats.clip_fraction) == float(slope == 0.0)


def test_gspo_has_one_ratio_per_response() -> None:
    # Ratios e^.2 and e^-.1: their geometric mean is e^.05. Each token has half of the response's gradient.
    ratio = math.exp(0.05)
    loss, gradient, _ = _one_response([math.exp(0.2), math.exp(-0.1)], [2.0, 2.0], surrogate="gspo")
    assert loss == pytest.approx(-2 * ratio)
    assert gradient == pytest.approx([-ratio, -ratio])
    # An advantage per token keeps its own sign: 2 and -1 average to 1/2.
    loss, gradient, _ = _one_response([math.exp(0.2), math.exp(-0.1)], [2.0, -1.0], surrogate="gspo")
    assert loss == pytest.approx(-0.5 * ratio)
    assert gradient == pytest.approx([-ratio, 0.5 * ratio])


def test_gspo_clips_all_tokens_of_a_response_or_none() -> None:
    # The first token alone would be clipped at 1.3, the mean ratio e^.2 = 1.22 is not; at a bound of 1.2 both are.
    ratios = [math.exp(0.4), 1.0]
    assert _one_response(ratios, [1.0, 1.0], surrogate="gspo")[2].clip_fraction == 0.0
    loss, gradient, stats = _one_response(ratios, [1.0, 1.0], surrogate="gspo", clip_high=0.2)
    assert (loss, gradient, float(stats.clip_fraction)) == (pytest.approx(-1.2), [0.0, 0.0], 1.0)


def test_gspo_with_one_advantage_per_response_has_the_gradient_of_its_published_objective(
    random_batch: Callable[..., Any],
) -> None:
    b = random_batch(2)
    new_BT, old_BT = _logprobs(2, b)
    new_BT.requires_grad_()
    ratio_B = ((new_BT - old_BT).masked_fill(~b.mask_BT, 0.0).sum(1) / b.mask_BT.sum(1)).exp()
    advantage_B = b.rewards_BT[:, 0]
    published = torch.maximum(-advantage_B * ratio_B, -advantage_B * ratio_B.clamp(0.9, 1.1)).mean()
    (expected,) = torch.autograd.grad(published, new_BT)
    ours, _ = clipped_surrogate(
        new_BT,
        old_BT,
        advantage_B[:, None].expand(new_BT.shape),
        b.mask_BT,
        clip_low=0.1,
        clip_high=0.1,
        aggregate="sequence_mean",
        surrogate="gspo",
    )
    torch.testing.assert_close(ours, published)
    torch.testing.assert_close(torch.autograd.grad(ours, new_BT)[0], expected)


def test_cispo_weighs_every_token_and_silences_none() -> None:
    # Weights: 1.5 clipped to 1.3, 0.5 to 0.8, 1.1 as it is; the loss is -weight A log(ratio), the old log-prob being 0.
    loss, gradient, stats = _one_response([1.5, 0.5, 1.1], [2.0, -2.0, 1.0], surrogate="cispo")
    expected = [1.3 * 2, 0.8 * -2, 1.1]
    logs = [math.log(1.5), math.log(0.5), math.log(1.1)]
    assert loss == pytest.approx(-sum(w * x for w, x in zip(expected, logs, strict=True)) / 3)
    assert gradient == pytest.approx([-w / 3 for w in expected])
    assert float(stats.clip_fraction) == pytest.approx(2 / 3)
    assert _one_response([0.01], [1.0], surrogate="cispo", clip_low=1.0)[1] == pytest.approx([-0.01])


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_before_the_policy_moves_all_surrogates_are_the_policy_gradient(
    random_batch: Callable[..., Any], surrogate: SurrogateName
) -> None:
    b = random_batch(0)
    logprobs = _logprobs(0, b)[0].requires_grad_()
    loss, stats = clipped_surrogate(
        logprobs,
        logprobs,
        b.rewards_BT,
        b.mask_BT,
        clip_low=0.2,
        clip_high=0.2,
        aggregate="token_mean",
        surrogate=surrogate,
    )
    loss.backward()
    expected = -(b.rewards_BT / b.mask_BT.sum()).masked_fill(~b.mask_BT, 0.0)
    torch.testing.assert_close(logprobs.grad, expected)
    assert stats.clip_fraction == 0.0


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_response_without_tokens_counts_zero(aggregate: AggregateName) -> None:
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
def test_gradients_agree_with_finite_differences(random_batch: Callable[..., Any], aggregate: AggregateName) -> None:
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


def _expected_gradients(estimator: KlEstimatorName) -> tuple[Tensor, Tensor, Tensor]:
    """Over all samples of a small policy: the mean gradient of the penalty, of KL(policy || q), of KL(q || policy)."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.4, 0.35, 0.25]], dtype=torch.float64)
    logp = logits.log_softmax(0)[None]
    penalty = kl_penalty(logp, q.log(), torch.ones(1, 3, dtype=torch.bool), estimator=estimator)
    totals = (
        (logp.detach().exp() * penalty).sum(),
        (logp.exp() * (logp - q.log())).sum(),
        (q * (q.log() - logp)).sum(),
    )
    found, reverse, forward = (torch.autograd.grad(total, logits, retain_graph=True)[0] for total in totals)
    return found, reverse, forward


# --- importance weights ------------------------------------------------------------------------------------------

TRAINER = torch.tensor([[0.5, 0.2, 0.9], [0.3, 0.4, math.nan]], dtype=torch.float64).log()
SAMPLER = torch.tensor([[0.4, 0.4, 0.1], [0.2, 0.5, math.nan]], dtype=torch.float64).log()
TWO_RESPONSES = torch.tensor([[True, True, True], [True, True, False]])


def test_importance_weights_of_tokens_by_hand() -> None:
    weights_BT = importance_weights(TRAINER, SAMPLER, TWO_RESPONSES, level="token", cap=2.0)
    expected_BT = torch.tensor([[1.25, 0.5, 2.0], [1.5, 0.8, 0.0]], dtype=torch.float64)  # 9 is cut to 2
    torch.testing.assert_close(weights_BT, expected_BT)


def test_importance_weights_of_responses_by_hand() -> None:
    weights_BT = importance_weights(TRAINER, SAMPLER, TWO_RESPONSES, level="sequence", cap=3.0)
    expected_BT = torch.tensor([[3.0, 3.0, 3.0], [1.2, 1.2, 0.0]], dtype=torch.float64)  # 1.25 * 0.5 * 9 is cut to 3
    torch.testing.assert_close(weights_BT, expected_BT)


def test_a_weight_never_overflows() -> None:
    far, near = torch.tensor([[0.0]]), torch.tensor([[-1e4]])
    assert importance_weights(far, near, ONE_TOKEN, level="token", cap=2.0).item() == pytest.approx(2.0)
    assert importance_weights(near, far, ONE_TOKEN, level="token", cap=2.0).item() == 0.0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_without_a_bound_weighted_tokens_have_the_trainers_expectation(level: Any) -> None:
    """Over all tokens that the sampler may draw, the mean of weight * advantage is the trainer's mean advantage."""
    trainer_V = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    sampler_V = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    advantages_V = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mask_V1 = torch.ones(3, 1, dtype=torch.bool)
    weights_V1 = importance_weights(trainer_V.log()[:, None], sampler_V.log()[:, None], mask_V1, level=level, cap=9.0)
    expected = (trainer_V * advantages_V).sum()
    torch.testing.assert_close((sampler_V * weights_V1[:, 0] * advantages_V).sum(), expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_weights_multiply_each_tokens_loss_and_gradient_and_take_none(
    random_batch: Callable[..., Any], surrogate: SurrogateName
) -> None:
    b = random_batch(3)
    new_BT, old_BT = _logprobs(3, b)
    weights_BT = torch.full_like(new_BT, 0.5)
    weights_BT[::2] = 0.0

    def loss_and_gradient(rows: Tensor, **weights: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_BT = new_BT[rows].clone().requires_grad_()
        loss, _ = clipped_surrogate(
            logprobs_BT,
            old_BT[rows],
            b.rewards_BT[rows],
            b.mask_BT[rows],
            clip_low=0.2,
            clip_high=0.2,
            aggregate="token_mean",
            surrogate=surrogate,
            denominator=1.0,
            **weights,
        )
        (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
        return loss.detach(), gradient_BT

    everything, odd = torch.arange(len(new_BT)), torch.arange(1, len(new_BT), 2)
    weights_BT.requires_grad_()
    loss, gradient_BT = loss_and_gradient(everything, weights_BT=weights_BT)
    odd_loss, odd_gradient_BT = loss_and_gradient(odd)
    torch.testing.assert_close(loss, odd_loss / 2)
    torch.testing.assert_close(gradient_BT[odd], odd_gradient_BT / 2)
    assert not gradient_BT[::2].any()
    assert weights_BT.grad is None


# --- the divergence as a loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_k1_and_k2_as_a_loss_have_the_gradient_of_the_divergence(estimator: KlEstimatorName) -> None:
    found, reverse, _ = _expected_gradients(estimator)
    torch.testing.assert_close(found, reverse)


def test_k3_as_a_loss_has_the_gradient_of_the_divergence_the_other_way_round() -> None:
    found, reverse, forward = _expected_gradients("k3")
    torch.testing.assert_close(found, forward)
    assert not torch.allclose(found, reverse, rtol=1e-3)


def test_the_own_gradient_of_k1_is_zero_on_average() -> None:
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)[None]
    q = torch.tensor([[0.4, 0.35, 0.25]], dtype=torch.float64)
    sampled = logp.detach().exp() * kl_k1(logp, q.log(), torch.ones(1, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(sampled.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_value_of_the_penalty_is_the_estimators(
    random_batch: Callable[..., Any], estimator: KlEstimatorName
) -> None:
    b = random_batch(4)
    new_BT, old_BT = _logprobs(4, b)
    old_BT.requires_grad_()
    penalty_BT = kl_penalty(new_BT.requires_grad_(), old_BT, b.mask_BT, estimator=estimator)
    torch.testing.assert_close(penalty_BT, KL_ESTIMATORS[estimator](new_BT, old_BT, b.mask_BT))
    penalty_BT.sum().backward()
    assert old_BT.grad is None, "the initial policy is a constant"


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_k2_and_k3_are_never_negative(random_batch: Callable[..., Any], seed: int) -> None:
    b = random_batch(seed)
    new_BT, old_BT = _logprobs(seed, b)
    for name in ("k2", "k3"):
        assert (KL_ESTIMATORS[name](new_BT, old_BT, b.mask_BT) >= 0).all()
