"""PRM losses, their exact split over micro-batches, and the diagnostics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from priml.maths.prm_loss import (
    abs_accuracy,
    auc,
    detached_dpo,
    kto,
    kto_anchor,
    likelihood,
    nca,
    nca_weights,
    outcome_cross_entropy,
    pair_accuracy,
    pairwise_dpo,
    pairwise_dpo_weights,
    rival_scores,
    sequence_scores,
)

ONE_TOKEN = torch.ones(4, 1, dtype=torch.bool)


def _gradient(loss_fn: Callable[[Tensor], Tensor], rewards_BT: Tensor) -> tuple[Tensor, Tensor]:
    leaf = rewards_BT.clone().requires_grad_()
    loss = loss_fn(leaf)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("outcome", [0.0, 0.3, 1.0])
def test_cross_entropy_at_initialisation_is_ln_2_for_any_outcome(outcome: float) -> None:
    loss = outcome_cross_entropy(torch.zeros(4, 1), ONE_TOKEN, torch.full((4,), outcome))
    torch.testing.assert_close(loss, torch.tensor(math.log(2.0)))


def test_cross_entropy_survives_scores_of_tens() -> None:
    loss, gradient = _gradient(
        lambda r: outcome_cross_entropy(r, ONE_TOKEN, torch.tensor([1.0, 0.0, 1.0, 0.0])),
        torch.tensor([[90.0], [90.0], [-90.0], [-90.0]]),
    )
    torch.testing.assert_close(loss, torch.tensor(45.0))
    torch.testing.assert_close(gradient[:, 0] * 4, torch.tensor([0.0, 1.0, -1.0, 0.0]))


@given(seed=st.integers(0, 2**16), soft=st.booleans())
@settings(max_examples=25, deadline=None)
def test_losses_and_gradients_add_up_over_micro_batches(
    random_batch: Callable[..., Any], seed: int, soft: bool
) -> None:
    b = random_batch(seed, soft=soft)
    size = len(b.outcomes_B)
    rivals_B = rival_scores(sequence_scores(b.rewards_BT, b.mask_BT), b.outcomes_B, b.groups_B)
    by_row = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).split([2, size - 5, 3])

    def split_cross_entropy(rewards_BT: Tensor) -> Tensor:
        parts = [outcome_cross_entropy(rewards_BT[i], b.mask_BT[i], b.outcomes_B[i], denominator=size) for i in by_row]
        return torch.stack(parts).sum()

    def split_detached(rewards_BT: Tensor) -> Tensor:
        parts = [
            detached_dpo(rewards_BT[i], b.mask_BT[i], b.outcomes_B[i], rivals_B[i], denominator=size) for i in by_row
        ]
        return torch.stack(parts).sum()

    num_pairs = sum(
        int(b.groups_B[i] == b.groups_B[j] and b.outcomes_B[i] > b.outcomes_B[j])
        for i in range(size)
        for j in range(size)
    )
    by_group = [(b.groups_B == g).nonzero().flatten() for g in b.groups_B.unique()]

    def split_pairwise(rewards_BT: Tensor) -> Tensor:
        parts = [
            pairwise_dpo(rewards_BT[i], b.mask_BT[i], b.outcomes_B[i], b.groups_B[i], denominator=num_pairs)
            for i in by_group
        ]
        return torch.stack(parts).sum()

    for whole, split in (
        (lambda r: outcome_cross_entropy(r, b.mask_BT, b.outcomes_B), split_cross_entropy),
        (lambda r: detached_dpo(r, b.mask_BT, b.outcomes_B, rivals_B), split_detached),
        (lambda r: pairwise_dpo(r, b.mask_BT, b.outcomes_B, b.groups_B), split_pairwise),
    ):
        torch.testing.assert_close(_gradient(split, b.rewards_BT), _gradient(whole, b.rewards_BT))


@given(seed=st.integers(0, 2**16), soft=st.booleans())
@settings(max_examples=25, deadline=None)
def test_pairwise_weights_carry_the_whole_gradient_through_any_split(
    random_batch: Callable[..., Any], seed: int, soft: bool
) -> None:
    b = random_batch(seed, soft=soft)
    weights_B = pairwise_dpo_weights(sequence_scores(b.rewards_BT, b.mask_BT), b.outcomes_B, b.groups_B)

    def one_response_at_a_time(rewards_BT: Tensor) -> Tensor:
        rows = range(len(weights_B))
        parts = [sequence_scores(rewards_BT[i : i + 1], b.mask_BT[i : i + 1]) * weights_B[i] for i in rows]
        return torch.cat(parts).sum()

    _, whole = _gradient(lambda r: pairwise_dpo(r, b.mask_BT, b.outcomes_B, b.groups_B), b.rewards_BT)
    _, split = _gradient(one_response_at_a_time, b.rewards_BT)
    torch.testing.assert_close(split, whole)


def test_without_pairs_the_pairwise_loss_is_zero_and_has_a_gradient() -> None:
    outcomes, groups = torch.ones(4), torch.tensor([0, 0, 1, 2])
    loss, gradient = _gradient(lambda r: pairwise_dpo(r, ONE_TOKEN, outcomes, groups), torch.randn(4, 1))
    assert loss == 0.0
    assert not gradient.any()
    assert not pairwise_dpo_weights(torch.randn(4), outcomes, groups).any()


def test_pairwise_loss_pairs_every_higher_with_every_lower_fraction() -> None:
    scores = torch.tensor([0.3, -0.2, 0.5])
    got = pairwise_dpo(scores[:, None], ONE_TOKEN[:3], torch.tensor([1.0, 0.4, 0.0]), torch.zeros(3, dtype=torch.int64))
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(math.log1p(math.exp(-float(scores[win] - scores[lose]))) for win, lose in pairs) / 3
    torch.testing.assert_close(got, torch.tensor(expected))


def test_pairwise_loss_is_blind_to_a_constant_per_prompt(random_batch: Callable[..., Any]) -> None:
    b = random_batch(3, num_tokens=1)
    shifted = b.rewards_BT + 0.1 * b.groups_B[:, None]
    torch.testing.assert_close(
        pairwise_dpo(shifted, b.mask_BT, b.outcomes_B, b.groups_B),
        pairwise_dpo(b.rewards_BT, b.mask_BT, b.outcomes_B, b.groups_B),
    )


def test_rivals_are_the_strictly_worse_of_a_good_response_and_the_strictly_better_of_a_failed_one() -> None:
    scores = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    outcomes = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.5])
    groups = torch.tensor([7, 7, 7, 7, 9])
    # 0.5 looks down only; the lone response of group 9 has no rival.
    expected = torch.tensor([14 / 3, 6.0, 1.5, 1.5, 0.0])
    torch.testing.assert_close(rival_scores(scores, outcomes, groups), expected)


def test_pair_accuracy_weighs_pairs_by_their_gap_and_groups_alike() -> None:
    outcomes = torch.tensor([1.0, 0.0, 0.6, 0.5, 0.5, 0.3])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    scores = torch.tensor([2.0, 1.0, 3.0, 0.0, 9.0, 1.0])
    # Group 0: pairs (0, 1) right, weight 1; (0, 2) wrong, weight .4; (1, 2) right, weight .6. Groups 1 and 2: 1/2.
    expected = torch.tensor((1.6 / 2.0 + 0.5 + 0.5) / 3)
    mask = torch.ones(6, 1, dtype=torch.bool)
    torch.testing.assert_close(pair_accuracy(scores[:, None], mask, outcomes, groups), expected)


def test_abs_accuracy_counts_a_zero_score_as_wrong() -> None:
    scores = torch.tensor([[0.0], [0.0], [0.1], [-0.1]])
    assert abs_accuracy(scores, ONE_TOKEN, torch.tensor([1.0, 0.0, 1.0, 0.0])) == 0.5


@given(
    scores=st.lists(st.integers(-3, 3), min_size=2, max_size=12),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_auc_is_the_share_of_pairs_won_with_ties_one_half(scores: list[int], seed: int) -> None:
    labels = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) > 0.5
    positives = [s for s, is_positive in zip(scores, labels, strict=True) if is_positive]
    negatives = [s for s, is_positive in zip(scores, labels, strict=True) if not is_positive]
    got = auc(torch.tensor(scores, dtype=torch.float32), labels)
    if not positives or not negatives:
        assert got is None
        return
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    torch.testing.assert_close(got, torch.tensor(sum(wins) / len(wins)))


@pytest.mark.parametrize("soft", [False, True])
def test_gradients_agree_with_finite_differences(random_batch: Callable[..., Any], soft: bool) -> None:
    b = random_batch(1, soft=soft, num_tokens=3)
    rivals_B = rival_scores(sequence_scores(b.rewards_BT, b.mask_BT), b.outcomes_B, b.groups_B)
    rewards_BT = b.rewards_BT.clone().requires_grad_()
    for loss in (
        lambda r: outcome_cross_entropy(r, b.mask_BT, b.outcomes_B),
        lambda r: pairwise_dpo(r, b.mask_BT, b.outcomes_B, b.groups_B),
        lambda r: detached_dpo(r, b.mask_BT, b.outcomes_B, rivals_B),
    ):
        assert torch.autograd.gradcheck(loss, rewards_BT)


# --- KTO and NCA -------------------------------------------------------------------------------------------------

LN2, LN3 = math.log(2), math.log(3)
PAIR = torch.tensor([0, 0])


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_by_hand():
    # sigmoid(-ln 3) = 1/4 for the good response at z = ln 3; the bad one at -ln 3 loses as little; at 0 each loses 1/2.
    anchor = doubles(0.0)[0]
    assert float(kto(doubles(LN3, -LN3), doubles(1, 0), anchor)) == pytest.approx(1 / 4)
    assert float(kto(doubles(0, 0), doubles(1, 0), anchor)) == pytest.approx(1 / 2)
    assert float(kto(doubles(-LN3, LN3), doubles(1, 0), anchor)) == pytest.approx(3 / 4)


def test_kto_measures_from_its_anchor():
    anchor = doubles(LN3)[0]
    # Good at the anchor: 1/2. Bad at 0, ln 3 below it: sigmoid(-ln 3) = 1/4.
    assert float(kto(doubles(LN3, 0), doubles(1, 0), anchor)) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_kto_weights_each_kind():
    loss = kto(doubles(0, 0, 0), doubles(1, 0, 0), doubles(0)[0], desirable_weight=2.0, undesirable_weight=0.5)
    assert float(loss) == pytest.approx((2 * 0.5 + 0.5 * 0.5 + 0.5 * 0.5) / 3)


def test_a_fractional_outcome_is_so_much_of_each_kind():
    anchor = doubles(0.0)[0]
    mixed = 0.75 * kto(doubles(LN3), doubles(1), anchor) + 0.25 * kto(doubles(LN3), doubles(0), anchor)
    assert float(kto(doubles(LN3), doubles(0.75), anchor)) == pytest.approx(float(mixed))


def test_the_anchor_is_a_mean_that_is_never_below_zero_and_takes_no_gradient():
    scores = doubles(1.0, 3.0).requires_grad_()
    anchor = kto_anchor(scores)
    assert float(anchor) == 2.0
    assert not anchor.requires_grad
    assert float(kto_anchor(doubles(-1.0, -3.0))) == 0.0


def test_kto_gradients_point_away_from_the_wrong_side_and_vanish_far_out():
    scores = doubles(0.0, 0.0, 30.0).requires_grad_()
    kto(scores, doubles(1, 0, 1), doubles(0.0)[0]).backward()
    assert scores.grad is not None
    # d/dz sigmoid(-z) = -1/4 at 0, divided by three responses.
    assert scores.grad.tolist() == pytest.approx([-1 / 12, 1 / 12, 0.0], abs=1e-12)


def test_nca_of_a_pair_by_hand():
    pull, push = nca_weights(doubles(1, 0), PAIR)
    assert pull.tolist() == [1.0, 0.0]
    assert push.tolist() == [0.5, 0.5]
    assert float(nca(doubles(0, 0), pull, push)) == pytest.approx(2 * LN2)
    # z_w = ln 3: -log(3/4) - log(1/4)/2; z_l = -ln 3: -log(3/4)/2.
    expected = -math.log(3 / 4) - math.log(1 / 4) / 2 - math.log(3 / 4) / 2
    assert float(nca(doubles(LN3, -LN3), pull, push)) == pytest.approx(expected)


def test_nca_gradients_by_hand():
    scores = doubles(LN3, -LN3).requires_grad_()
    nca(scores, *nca_weights(doubles(1, 0), PAIR)).backward()
    assert scores.grad is not None
    # Winner: -sigmoid(-z) + sigmoid(z)/2 = -1/4 + 3/8; loser: sigmoid(z)/2 = 1/8.
    assert scores.grad.tolist() == pytest.approx([1 / 8, 1 / 8])


def test_the_best_of_a_group_share_its_pull_and_groups_count_alike():
    outcomes, groups = doubles(1, 0, 1, 1, 0, 0, 0), torch.tensor([7, 7, 7, 2, 2, 7, 7])
    pull, push = nca_weights(outcomes, groups)
    assert pull.tolist() == pytest.approx([1 / 4, 0, 1 / 4, 1 / 2, 0, 0, 0])
    assert push.tolist() == pytest.approx([1 / 10, 1 / 10, 1 / 10, 1 / 4, 1 / 4, 1 / 10, 1 / 10])


def test_a_group_without_a_preference_weighs_nothing():
    pull, push = nca_weights(doubles(1, 1, 0, 0, 1, 0), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert pull.tolist() == [0, 0, 0, 0, 1, 0]
    assert push.tolist() == [0, 0, 0, 0, 0.5, 0.5]
    none_pull, none_push = nca_weights(doubles(1, 1), PAIR)
    assert none_pull.tolist() == none_push.tolist() == [0, 0]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_kto_and_nca_add_up_over_micro_batches(cut: int):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, generator=generator, dtype=torch.float64)
    outcomes, groups = doubles(1, 0, 0, 1), torch.tensor([0, 1, 0, 1])
    pull, push = nca_weights(outcomes, groups)
    anchor = doubles(0.3)[0]

    def whole(scores: Tensor) -> Tensor:
        return kto(scores, outcomes, anchor) + nca(scores, pull, push)

    def part(scores: Tensor, rows: slice) -> Tensor:
        loss = kto(scores[rows], outcomes[rows], anchor, denominator=4.0)
        return loss + nca(scores[rows], pull[rows], push[rows])

    together, difference = values.clone().requires_grad_(), values.clone().requires_grad_()
    loss = whole(together)
    loss.backward()
    parts = part(difference, slice(0, cut)) + part(difference, slice(cut, 4))
    parts.backward()
    torch.testing.assert_close(parts, loss)
    torch.testing.assert_close(difference.grad, together.grad)


def test_gradients_of_kto_and_nca_agree_with_finite_differences():
    scores = doubles(0.4, -1.2, 2.0, 0.1).requires_grad_()
    outcomes, groups = doubles(1, 0, 0.25, 1), torch.tensor([0, 0, 1, 1])
    pull, push = nca_weights(outcomes, groups)
    assert torch.autograd.gradcheck(lambda z: kto(z, outcomes, doubles(0.2)[0], desirable_weight=1.5), (scores,))
    assert torch.autograd.gradcheck(lambda z: nca(z, pull, push), (scores,))


def test_scores_of_hundreds_stay_finite():
    scores = doubles(500, -500).requires_grad_()
    loss = nca(scores, *nca_weights(doubles(0, 1), PAIR)) + kto(scores, doubles(0, 1), doubles(0)[0])
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


def test_the_optimum_of_the_likelihood_pays_each_token_what_it_adds_to_the_log_chance_of_success() -> None:
    # All responses of two tokens over three symbols, with chances of success of their own; exact sums, no samples.
    generator = torch.Generator().manual_seed(0)
    ref_first, ref_second = torch.rand(3, generator=generator), torch.rand(3, 3, generator=generator)
    ref_first, ref_second = ref_first / ref_first.sum(), ref_second / ref_second.sum(1, keepdim=True)
    success = torch.rand(3, 3, generator=generator)
    sampled = ref_first[:, None] * ref_second

    logits = [ref_first.log().requires_grad_(), ref_second.log().requires_grad_()]
    optimizer = torch.optim.LBFGS(logits, max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    mask_BT = torch.ones(9, 2, dtype=torch.bool)

    def rewards(beta: float = 0.3) -> Tensor:
        first, second = logits[0].log_softmax(0) - ref_first.log(), logits[1].log_softmax(1) - ref_second.log()
        return beta * torch.stack([first[:, None].expand(3, 3).flatten(), second.flatten()], 1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = likelihood(rewards(), mask_BT, (sampled * success).flatten(), beta=0.3, denominator=1.0)
        loss.backward()
        return loss

    assert float(closure().detach()) == pytest.approx(0.0, abs=1e-6)
    optimizer.step(closure)
    chance = (sampled * success).sum()
    after_first = (ref_second * success).sum(1)
    expected = torch.stack(
        [
            (after_first.log() - chance.log())[:, None].expand(3, 3).flatten(),
            (success.log() - after_first.log()[:, None]).flatten(),
        ],
        1,
    )
    assert torch.allclose(rewards(1.0), expected, atol=1e-3)


def test_wrong_responses_weigh_nothing_in_the_likelihood_and_partly_right_ones_their_share() -> None:
    rewards_BT = torch.tensor([[0.2, 0.4, 99.0], [0.1, 0.3, 0.5], [7.0, 7.0, 7.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    loss = likelihood(rewards_BT, mask_BT, torch.tensor([1.0, 0.5, 0.0]), beta=0.1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-(0.6 + 0.45) / 0.1 / (2 + 1.5))
    grad = rewards_BT.grad
    assert grad is not None
    assert torch.allclose(grad, -torch.tensor([[1.0, 1, 0], [0.5, 0.5, 0.5], [0, 0, 0]]) / 0.1 / 3.5)


def test_the_likelihood_of_nothing_right_is_zero() -> None:
    loss = likelihood(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), torch.zeros(2), beta=0.1)
    assert float(loss) == 0.0
