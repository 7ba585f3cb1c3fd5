"""Rewards of given responses, without learning from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from priml.batch import Batch, Row, collate
from priml.learners.reference import FrozenReference
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

    def __init__(self, model: LanguageModel, reference: FrozenReference, *, beta: float) -> None:
        self._model = model
        self._reference = reference
        self._beta = beta

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenRewards:
        """Both models see the same shapes: equal weights give rewards of exactly 0."""
        mask_BT = batch.mask_BT
        prm_BT, ref_BT = torch.zeros(mask_BT.shape), torch.zeros(mask_BT.shape)
        for micro in self._model.micro_batches(batch, range(len(batch))):
            micro.put(self._model.score(micro)[0], prm_BT)
            micro.put(self._reference.logprobs(batch, micro), ref_BT)
        return TokenRewards(prm_BT, ref_BT, implicit_rewards(prm_BT, ref_BT, mask_BT, beta=self._beta))


def rows_in_batches(rows: Sequence[Row], size: int) -> Iterator[tuple[list[int], Batch]]:
    """All rows in batches of about one length, with the indices of their rows: nobody waits for the longest."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids) + len(rows[i].response_ids), i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, collate([rows[i] for i in chosen], step=0)
