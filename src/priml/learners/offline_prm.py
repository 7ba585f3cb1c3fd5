"""The implicit PRM by itself: learning from the labels of given responses (arXiv 2412.01981)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from priml.batch import Batch, Row, collate
from priml.learners.optimizer import Optimizer, attach_batch_on_error
from priml.learners.prm_scorer import ImplicitScorer
from priml.learners.reference import FrozenReference
from priml.learners.trained import Trained
from priml.maths.implicit import implicit_rewards
from priml.maths.masking import group_max
from priml.maths.offline_losses import kto, kto_anchor, nca, nca_weights
from priml.maths.prm_loss import (
    abs_accuracy,
    auc,
    outcome_cross_entropy,
    pair_accuracy,
    pairwise_dpo,
    pairwise_dpo_weights,
    sequence_scores,
)
from priml.models.forward import LanguageModel, MicroBatch
from priml.models.prm_card import PrmCard, write_card

LossKind = Literal["ce", "dpo", "kto", "nca"]

_MicroLoss = Callable[[MicroBatch, Tensor], Tensor]
"""From the rewards [b, t] of a micro-batch to its share of the batch's loss."""


@dataclass(frozen=True, slots=True)
class OfflinePrmReport:
    """How the PRM did on a batch before it learnt from it, and how the step went."""

    loss: float
    grad_norm: float
    """Before clipping."""
    lr_scale: float
    """Share of the peak learning rate."""
    judgement: dict[str, float]
    """`accuracy`, `auc`, ..., as `judge` gives them."""

    def metrics(self) -> dict[str, float]:
        """Flat metrics."""
        own = {"loss": self.loss, "grad_norm": self.grad_norm, "lr_scale": self.lr_scale}
        return {f"prm/{name}": value for name, value in (own | self.judgement).items()}


class OfflinePrm(Trained[LanguageModel]):
    """A PRM that learns from batches of labelled responses; a pair is a group of two, labelled 1 and 0."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        reference: FrozenReference,
        stepper: Optimizer,
        *,
        card: PrmCard,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
    ) -> None:
        """`card` says loss and beta, and goes into the exported folder. The weights are those of KTO."""
        super().__init__(model, tokenizer, stepper)
        self._reference = reference
        self._card = card
        self._weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
        self._scorer = ImplicitScorer(model, reference, beta=card.beta)

    def update(self, batch: Batch, *, lr_scale: float) -> OfflinePrmReport:
        """One optimizer step.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        rewards_BT = torch.zeros(batch.mask_BT.shape)
        total = 0.0
        with attach_batch_on_error(batch), self._model.training():
            micros = list(self._model.micro_batches(batch, range(len(batch))))
            loss_of = self._loss(batch, micros)
            for micro in micros:
                rewards_bt = self._rewards(batch, micro)
                micro.put(rewards_bt, rewards_BT)
                loss = loss_of(micro, rewards_bt)
                loss.backward()
                total += float(loss.detach())
            norm = self._stepper.step(total, lr_scale=lr_scale)
        return OfflinePrmReport(total, norm, lr_scale, judge(batch, rewards_BT))

    def examine(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Judge responses that are not learnt from, all batches together."""
        scores, outcomes, groups, lengths = [], [], [], []
        for batch in batches:
            scores.append(sequence_scores(self._scorer.score(batch).rewards_BT, batch.mask_BT))
            outcomes.append(batch.outcomes_B)
            groups.append(batch.groups_B)
            lengths.append(batch.response_lengths_B)
        return judge_scores(torch.cat(scores), torch.cat(outcomes), torch.cat(groups), torch.cat(lengths))

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, with the card that scoring needs."""
        super().export(folder)
        write_card(folder, self._card)

    # --- losses --------------------------------------------------------------------------------------------------

    def _rewards(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """[b, t], differentiable in grad mode."""
        prm_bt, _ = self._model.score(micro)
        return implicit_rewards(prm_bt, self._reference.logprobs(batch, micro), micro.mask_bt, beta=self._card.beta)

    @torch.no_grad()
    def _scores(self, batch: Batch, micros: Sequence[MicroBatch]) -> Tensor:
        """[B], without gradient: for what depends on responses of other micro-batches."""
        scores_B = torch.zeros(len(batch))
        for micro in micros:
            scores_B[micro.rows_b] = sequence_scores(self._rewards(batch, micro), micro.mask_bt).cpu()
        return scores_B

    def _loss(self, batch: Batch, micros: Sequence[MicroBatch]) -> _MicroLoss:
        """Each response's loss is its own, given numbers that are computed here for the whole batch."""
        outcomes_B, size = batch.outcomes_B, float(len(batch))
        match self._card.loss:
            case "ce":
                return lambda micro, rewards_bt: outcome_cross_entropy(
                    rewards_bt, micro.mask_bt, micro.take_rows(outcomes_B), denominator=size
                )
            case "kto":
                others = mismatched(batch)
                anchor = kto_anchor(self._scores(others, list(self._model.micro_batches(others, range(len(others))))))
                return lambda micro, rewards_bt: kto(
                    sequence_scores(rewards_bt, micro.mask_bt),
                    micro.take_rows(outcomes_B),
                    anchor.to(rewards_bt.device),
                    denominator=size,
                    **self._weights,
                )
            case "nca":
                pull_B, push_B = nca_weights(outcomes_B, batch.groups_B)
                return lambda micro, rewards_bt: nca(
                    sequence_scores(rewards_bt, micro.mask_bt), micro.take_rows(pull_B), micro.take_rows(push_B)
                )
            case _:
                return self._dpo(batch, micros)

    def _dpo(self, batch: Batch, micros: Sequence[MicroBatch]) -> _MicroLoss:
        """The one loss that couples responses. When a batch takes several micro-batches, the scores are collected
        first; then each micro-batch takes its own part of the gradient and an equal part of the value."""
        outcomes_B, groups_B = batch.outcomes_B, batch.groups_B
        if len(micros) == 1:
            return lambda micro, rewards_bt: pairwise_dpo(
                rewards_bt, micro.mask_bt, micro.take_rows(outcomes_B), micro.take_rows(groups_B)
            )
        scores_B = self._scores(batch, micros)
        whole_B1 = torch.ones(len(batch), 1, dtype=torch.bool)
        value = float(pairwise_dpo(scores_B.unsqueeze(1), whole_B1, outcomes_B, groups_B)) / len(micros)
        weights_B = pairwise_dpo_weights(scores_B, outcomes_B, groups_B)

        def share(micro: MicroBatch, rewards_bt: Tensor) -> Tensor:
            scores_b = sequence_scores(rewards_bt, micro.mask_bt)
            return value + ((scores_b - scores_b.detach()) * micro.take_rows(weights_B)).sum()

        return share


def mismatched(batch: Batch) -> Batch:
    """The prompts of a batch, each with a response to another one: that of the next row whose group differs.

    Where all rows are of one group there is no other, and each prompt gets its neighbour's response.
    """
    groups = batch.groups_B.tolist()
    size = len(groups)
    rows: list[Row] = []
    for i in range(size):
        after = [(i + n) % size for n in range(1, size + 1)]
        j = next((j for j in after if groups[j] != groups[i]), after[0])
        prompt = batch.tokens_BL[i, : batch.prompt_lengths_B[i]].tolist()
        start, length = int(batch.prompt_lengths_B[j]), int(batch.response_lengths_B[j])
        response = batch.tokens_BL[j, start : start + length].tolist()
        rows.append(Row(prompt, response, outcome=0.0, group=groups[i], step_ends=()))
    return collate(rows, step=batch.step)


def judge(batch: Batch, rewards_BT: Tensor) -> dict[str, float]:
    """How well the scores of a batch agree with its labels; what means nothing is left out."""
    scores_B = sequence_scores(rewards_BT, batch.mask_BT)
    return judge_scores(scores_B, batch.outcomes_B, batch.groups_B, batch.response_lengths_B)


def judge_scores(scores_B: Tensor, outcomes_B: Tensor, groups_B: Tensor, lengths_B: Tensor) -> dict[str, float]:
    """`accuracy` (the sign of the score), `auc`, `pair_accuracy` (over the groups with unlike labels), `reward_mean`
    (mean score), `length_correlation`, and `cross_entropy`, whatever is trained with."""
    whole_B1 = torch.ones(len(scores_B), 1, dtype=torch.bool)
    scores_B1 = scores_B.unsqueeze(1)
    found: dict[str, Tensor | None] = {
        "accuracy": abs_accuracy(scores_B1, whole_B1, outcomes_B),
        "auc": auc(scores_B, outcomes_B > 0.5),
        "pair_accuracy": _pair_accuracy(scores_B, outcomes_B, groups_B),
        "reward_mean": scores_B.mean(),
        "length_correlation": _correlation(scores_B, lengths_B.to(scores_B.dtype)),
        "cross_entropy": outcome_cross_entropy(scores_B1, whole_B1, outcomes_B),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _pair_accuracy(scores_B: Tensor, outcomes_B: Tensor, groups_B: Tensor) -> Tensor | None:
    """`pair_accuracy` over the groups that have something to order."""
    has_order_B = group_max(outcomes_B, groups_B) > -group_max(-outcomes_B, groups_B)
    if not bool(has_order_B.any()):
        return None
    chosen_B1 = scores_B[has_order_B].unsqueeze(1)
    mask_B1 = torch.ones_like(chosen_B1, dtype=torch.bool)
    return pair_accuracy(chosen_B1, mask_B1, outcomes_B[has_order_B], groups_B[has_order_B])


def _correlation(x_B: Tensor, y_B: Tensor) -> Tensor | None:
    if len(x_B) < 2 or float(x_B.std()) == 0.0 or float(y_B.std()) == 0.0:
        return None
    return torch.corrcoef(torch.stack([x_B, y_B]))[0, 1]
