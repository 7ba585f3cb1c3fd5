"""KTO and NCA against numbers worked by hand, their gradients, and their sums over micro-batches."""

import math

import pytest
import torch
from torch import Tensor

from priml.maths.offline_losses import kto, kto_anchor, nca, nca_weights

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
def test_losses_and_gradients_add_up_over_micro_batches(cut: int):
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


def test_gradients_agree_with_finite_differences():
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
