"""Losses that only the offline implicit PRM uses, as functions of the responses' scores z (their summed rewards).

"Free Process Rewards without Process Labels" (arXiv 2412.01981) fits z with any loss on outcomes. Cross-entropy and DPO
are in `priml.maths.prm_loss`; here are KTO and NCA. Neither couples the scores of two responses, so both can be taken
one micro-batch at a time: what depends on the whole batch is a constant that is computed before.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from priml.maths.masking import group_max, group_sum


def kto_anchor(mismatched_scores_B: Tensor) -> Tensor:
    """The point KTO measures gains and losses from, detached: `max(0, mean z)` of responses to *other* prompts.

    An estimate of `beta * KL(pi_prm || pi_ref)` (arXiv 2402.01306, section 4.1). A response to another prompt shows by
    how much the PRM has moved from the reference for reasons that have nothing to do with the prompt at hand.
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

    `o w_d sigmoid(anchor - z) + (1 - o) w_u sigmoid(z - anchor)`: the value of a response saturates, so one that is
    already far on the right side of the anchor, or hopelessly on the wrong one, hardly pulls.

    `denominator`: number of responses in the whole batch, when these rows are only a part of it.
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
