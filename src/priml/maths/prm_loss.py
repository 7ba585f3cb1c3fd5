"""Losses of the implicit PRM, which learns from outcomes alone, and diagnostics that show whether it has learnt.

All use the score of a response, `z = sum of its token rewards`. Outcomes are shares in [0, 1]. A loss is a sum over a
denominator. `denominator` is the number of responses (or pairs) of the whole batch, if these rows are only part of it:
so micro-batches add up to the loss and the gradient of the batch. KTO and NCA are used offline only (arXiv 2412.01981).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from priml.maths.masking import group_index, group_max, group_sum, masked_sum


def sequence_scores(rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Score z of each response: the sum of its token rewards, never divided by its length."""
    return masked_sum(rewards_BT, mask_BT, dim=1)


def outcome_cross_entropy(
    rewards_BT: Tensor, mask_BT: Tensor, outcomes_B: Tensor, *, denominator: float | None = None
) -> Tensor:
    """Cross-entropy between sigmoid(z) and the outcome, mean over responses: the loss PRIME trains with.

    ln 2 at initialisation, whatever the outcomes.
    """
    scores_B = sequence_scores(rewards_BT, mask_BT)
    total = binary_cross_entropy_with_logits(scores_B, outcomes_B.to(scores_B.dtype), reduction="sum")
    return total / _count(scores_B.shape[0] if denominator is None else denominator)


def pairwise_dpo(
    rewards_BT: Tensor, mask_BT: Tensor, outcomes_B: Tensor, groups_B: Tensor, *, denominator: float | None = None
) -> Tensor:
    """`-log sigmoid(z_winner - z_loser)`, mean over all pairs of a group whose outcomes differ; 0 without pairs.

    Unlike cross-entropy it is blind to a constant per prompt, which the PRM cannot express anyway. A group must be
    whole; where groups are split over micro-batches, use `pairwise_dpo_weights`.
    """
    scores_B = sequence_scores(rewards_BT, mask_BT)
    winner_N, loser_N = _ranked_pairs(outcomes_B, groups_B)
    total = -logsigmoid(scores_B[winner_N] - scores_B[loser_N]).sum()
    return total / _count(winner_N.shape[0] if denominator is None else denominator)


def pairwise_dpo_weights(scores_B: Tensor, outcomes_B: Tensor, groups_B: Tensor) -> Tensor:
    """Gradient dL/dz of `pairwise_dpo` for each response, detached.

    The gradient depends on the rest of the group through this number alone. So collect all scores without gradient,
    call this once, and let each micro-batch minimise `(z * weight).sum()`: the gradients add up to those of the loss.
    """
    scores_B = scores_B.detach()
    winner_N, loser_N = _ranked_pairs(outcomes_B, groups_B)
    pull_N = torch.sigmoid(scores_B[loser_N] - scores_B[winner_N]) / _count(winner_N.shape[0])
    return torch.zeros_like(scores_B).index_add(0, winner_N, -pull_N).index_add(0, loser_N, pull_N)


def rival_scores(scores_B: Tensor, outcomes_B: Tensor, groups_B: Tensor) -> Tensor:
    """What `detached_dpo` compares each response with, detached: the mean score of its rivals in the group.

    Rivals of a response with an outcome above 0 are those with a strictly lower one; rivals of a response with
    outcome 0 are those with a strictly higher one. 0 where there are none.
    """
    scores_B = scores_B.detach()
    higher_N, lower_N = _ranked_pairs(outcomes_B, groups_B)
    # A response with a positive outcome looks down, one with outcome 0 looks up; it can only be the lower of a pair.
    looks_up_N = outcomes_B[lower_N] <= 0
    looker_M = torch.cat([higher_N, lower_N[looks_up_N]])
    rival_M = torch.cat([lower_N, higher_N[looks_up_N]])
    total_B = torch.zeros_like(scores_B).index_add(0, looker_M, scores_B[rival_M])
    count_B = torch.zeros_like(scores_B).index_add(0, looker_M, torch.ones_like(scores_B[rival_M]))
    return total_B / count_B.clamp_min(1)


def detached_dpo(
    rewards_BT: Tensor,
    mask_BT: Tensor,
    outcomes_B: Tensor,
    rivals_B: Tensor,
    *,
    denominator: float | None = None,
) -> Tensor:
    """`softplus(-s (z - rival))`, mean over responses; s = +1 where the outcome is above 0, else -1.

    The pairwise loss with the other side held constant (`rival_scores`), so responses can be trained one at a time.
    """
    margin_B = sequence_scores(rewards_BT, mask_BT) - rivals_B.detach()
    total = softplus(torch.where(outcomes_B > 0, -margin_B, margin_B)).sum()
    return total / _count(margin_B.shape[0] if denominator is None else denominator)


def likelihood(
    rewards_BT: Tensor, mask_BT: Tensor, outcomes_B: Tensor, *, beta: float, denominator: float | None = None
) -> Tensor:
    """Negative mean log-ratio per token of the right responses; outcomes weigh them. 0 at initialisation.

    Up to a constant the negative log-likelihood of right responses. Its optimum is the reference conditioned on
    success, where a token's log-ratio is `log P(success | up to it) - log P(success | before it)` (docs/algorithm.md).
    `denominator` is the number of tokens of all responses, each weighed by its outcome.
    """
    weights_B = outcomes_B.to(rewards_BT.dtype)
    total = -(weights_B * sequence_scores(rewards_BT, mask_BT)).sum() / beta
    return total / _count(float((weights_B * mask_BT.sum(1)).sum()) if denominator is None else denominator)


def kto_anchor(mismatched_scores_B: Tensor) -> Tensor:
    """The zero of gains and losses in KTO, detached: `max(0, mean z)` of responses to *other* prompts.

    An estimate of `beta * KL(pi_prm || pi_ref)` (arXiv 2402.01306, section 4.1).
    """
    return mismatched_scores_B.detach().mean().clamp_min(0.0)


def kto(
    scores_B: Tensor,
    outcomes_B: Tensor,
    anchor: Tensor,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    denominator: float | None = None,
) -> Tensor:
    """Kahneman-Tversky loss, mean over responses (arXiv 2402.01306, equation 8).

    `o w_d sigmoid(anchor - z) + (1 - o) w_u sigmoid(z - anchor)`. Responses far from the anchor hardly pull.
    """
    outcomes_B = outcomes_B.to(scores_B.dtype)
    gain_B = scores_B - anchor.detach()
    loss_B = desirable_weight * outcomes_B * torch.sigmoid(-gain_B)
    loss_B = loss_B + undesirable_weight * (1 - outcomes_B) * torch.sigmoid(gain_B)
    return loss_B.sum() / (scores_B.shape[0] if denominator is None else denominator)


def nca_weights(outcomes_B: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor]:
    """How strongly `nca` pulls each score up and pushes it down: two [B] tensors, for the whole batch.

    In a group of K responses the best ones share a pull of 1 and everyone is pushed with 1/K: the loss of arXiv
    2402.05369 for explicit rewards, at temperature 0. A group whose outcomes are all alike prefers nothing and weighs
    0. Weights are divided by the number of groups that prefer something.
    """
    is_best_B = (outcomes_B == group_max(outcomes_B, groups_B)).to(torch.get_default_dtype())
    num_best_B, size_B = group_sum(is_best_B, groups_B), group_sum(torch.ones_like(is_best_B), groups_B)
    prefers_B = num_best_B < size_B
    num_groups = (prefers_B / size_B).sum().round().clamp_min(1.0)
    weight_B = prefers_B / num_groups
    return weight_B * is_best_B / num_best_B, weight_B / size_B


def nca(scores_B: Tensor, pull_B: Tensor, push_B: Tensor) -> Tensor:
    """Noise-contrastive alignment, `-sum(pull log sigmoid(z) + push log sigmoid(-z))`, mean over groups.

    For a pair: `-log sigmoid(z_w) - (log sigmoid(-z_w) + log sigmoid(-z_l)) / 2`. Unlike DPO it sees absolute scores:
    the likelihood of a good response cannot fall along with that of the bad one. 2 ln 2 at initialisation.

    `pull_B`, `push_B`: from `nca_weights`, of these rows.
    """
    pull_B, push_B = pull_B.to(scores_B.dtype), push_B.to(scores_B.dtype)
    return (pull_B * softplus(-scores_B) + push_B * softplus(scores_B)).sum()


def pair_accuracy(rewards_BT: Tensor, mask_BT: Tensor, outcomes_B: Tensor, groups_B: Tensor) -> Tensor:
    """Share of pairs inside a group that the scores order as the outcomes do, mean over groups.

    A pair weighs `|o_i - o_j|`; a group whose outcomes are all equal (or that has one member) counts 1/2. As in the
    published programs, a tie of scores is right when the first in the batch has not the higher outcome.
    """
    scores_B = sequence_scores(rewards_BT, mask_BT)
    outcomes_B = outcomes_B.to(scores_B.dtype)
    index_B, num_groups = group_index(groups_B)
    first_N, second_N = _pairs(torch.triu(_same_group(groups_B), diagonal=1))
    gap_N = outcomes_B[first_N] - outcomes_B[second_N]
    is_right_N = (scores_B[first_N] > scores_B[second_N]) == (gap_N > 0)

    none_P = scores_B.new_zeros(num_groups)
    weight_P = none_P.index_add(0, index_B[first_N], gap_N.abs())
    right_P = none_P.index_add(0, index_B[first_N], gap_N.abs().masked_fill(~is_right_N, 0.0))
    share_P = right_P / weight_P.masked_fill(weight_P == 0, 1.0)
    return share_P.masked_fill(weight_P == 0, 0.5).mean()


def abs_accuracy(rewards_BT: Tensor, mask_BT: Tensor, outcomes_B: Tensor) -> Tensor:
    """Share of responses whose score has the sign of `2 outcome - 1`; a score of 0 is wrong for a 0/1 outcome."""
    scores_B = sequence_scores(rewards_BT, mask_BT)
    return (scores_B.sign() == (2 * outcomes_B - 1).sign()).to(scores_B.dtype).mean()


def auc(scores_B: Tensor, labels_B: Tensor) -> Tensor | None:
    """Probability that a random positive scores above a random negative, ties counting one half.

    `labels_B` is bool. None when only one class is present: there is nothing to tell apart.
    """
    labels_B = labels_B.bool()
    num_positive = int(labels_B.sum())
    num_negative = labels_B.shape[0] - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    # The Mann-Whitney statistic: ranks from 1, tied scores share their mean rank. Twice the rank is an integer, so sums
    # over millions of tokens stay exact.
    index_B, num_levels = group_index(scores_B)
    counts_U = torch.bincount(index_B, minlength=num_levels)
    twice_rank_U = 2 * counts_U.cumsum(0) - counts_U + 1
    twice_wins = twice_rank_U[index_B][labels_B].sum() - num_positive * (num_positive + 1)
    return twice_wins / (2 * num_positive * num_negative)


def _ranked_pairs(outcomes_B: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor]:
    """All (winner, loser) pairs of rows: same group, the winner's outcome strictly higher."""
    return _pairs(_same_group(groups_B) & (outcomes_B[:, None] > outcomes_B[None, :]))


def _same_group(groups_B: Tensor) -> Tensor:
    return groups_B[:, None] == groups_B[None, :]


def _pairs(chosen_BB: Tensor) -> tuple[Tensor, Tensor]:
    first_N, second_N = torch.nonzero(chosen_BB).unbind(1)
    return first_N, second_N


def _count(denominator: float) -> float:
    """A batch without responses or pairs has the loss 0, not 0 / 0."""
    return max(denominator, 1.0)
