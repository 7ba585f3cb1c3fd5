"""The implicit PRM by itself: learning from the labels of given responses (arXiv 2412.01981), and scoring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from priml.batch import Batch, TokenScores
from priml.learners.base import PrmReport
from priml.learners.engine import Scorer
from priml.learners.prm import ImplicitPrm, mixed_accuracy, outcome_agreement
from priml.learners.reference import Reference
from priml.maths.implicit import implicit_rewards
from priml.maths.prm_loss import outcome_cross_entropy, sequence_scores


@dataclass(frozen=True, slots=True)
class TokenRewards:
    """Log-probs and rewards of a batch, [B, T], on the CPU, 0 on padding."""

    prm_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    rewards_BT: Tensor


@dataclass(frozen=True, slots=True)
class ImplicitScorer:
    """Rewards of given responses: `beta * (log pi_prm - log pi_ref)` per token, without gradient."""

    model: Scorer[TokenScores]
    reference: Reference
    beta: float

    def score(self, batch: Batch) -> TokenRewards:
        """Both models see the same shapes: equal weights give rewards of exactly 0."""
        prm_BT = self.model.scores(batch, temperature=self.reference.temperature).logprobs_BT
        ref_BT = self.reference.logprobs(batch, range(len(batch)))
        return TokenRewards(prm_BT, ref_BT, implicit_rewards(prm_BT, ref_BT, batch.mask_BT, beta=self.beta))


class OfflinePrm(ImplicitPrm):
    """An implicit PRM that learns from labelled responses; a pair is a group of two, labelled 1 and 0.

    It differs from the online one in what it reports: groups without both labels have no pair accuracy.
    """

    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Judge responses that are not learnt from, all batches together."""
        assert self.beta is not None, "labelled responses come with a beta"
        scorer = ImplicitScorer(self.engine, self.reference, beta=self.beta)
        scores_B = torch.cat([sequence_scores(scorer.score(b).rewards_BT, b.mask_BT) for b in batches])
        outcomes_B, groups_B = torch.cat([b.outcomes_B for b in batches]), torch.cat([b.groups_B for b in batches])
        return judge_scores(scores_B, outcomes_B, groups_B, torch.cat([b.response_lengths_B for b in batches]))

    def _report(
        self, batch: Batch, scores_B: Tensor, steps: Sequence[tuple[float, float]], lr_scale: float
    ) -> PrmReport:
        ((loss, grad_norm),) = steps
        judgement = judge_scores(scores_B, batch.outcomes_B, batch.groups_B, batch.response_lengths_B)
        return PrmReport(loss=loss, grad_norm=grad_norm, lr_scale=lr_scale, **judgement)


def judge_scores(scores_B: Tensor, outcomes_B: Tensor, groups_B: Tensor, lengths_B: Tensor) -> dict[str, float]:
    """`outcome_agreement`, with `cross_entropy`, and `pair_accuracy` over the groups with unlike labels if any."""
    scores_B1 = scores_B.unsqueeze(1)
    found = outcome_agreement(scores_B, outcomes_B, lengths_B)
    found["cross_entropy"] = float(outcome_cross_entropy(scores_B1, torch.ones_like(scores_B1).bool(), outcomes_B))
    mixed = mixed_accuracy(scores_B, outcomes_B, groups_B)
    if mixed["mixed_groups"]:
        found["pair_accuracy"] = mixed["mixed_accuracy"]
    return found
