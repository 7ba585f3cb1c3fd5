"""Rewards of given responses, without learning from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from priml.batch import Batch
from priml.learners.reference import Reference
from priml.maths.implicit import implicit_rewards
from priml.models.forward import LanguageModel


@dataclass(frozen=True, slots=True)
class TokenRewards:
    """Log-probs and rewards of a batch, [B, T], on the CPU, 0 on padding."""

    prm_logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    rewards_BT: Tensor


class ImplicitScorer:
    """Rewards of given responses: `beta * (log pi_prm - log pi_ref)` per token, without gradient."""

    def __init__(self, model: LanguageModel, reference: Reference, *, beta: float) -> None:
        self._model = model
        self._reference = reference
        self._beta = beta

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenRewards:
        """Both models see the same shapes: equal weights give rewards of exactly 0."""
        mask_BT = batch.mask_BT
        prm_BT, ref_BT = torch.zeros(mask_BT.shape), torch.zeros(mask_BT.shape)
        for micro in self._model.micro_batches(batch, range(len(batch))):
            micro.put(self._model.score(micro, temperature=self._reference.temperature)[0], prm_BT)
            micro.put(self._reference.logprobs(batch, micro), ref_BT)
        return TokenRewards(prm_BT, ref_BT, implicit_rewards(prm_BT, ref_BT, mask_BT, beta=self._beta))
