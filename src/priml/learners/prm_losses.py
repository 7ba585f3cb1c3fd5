"""The losses of the implicit PRM, online and offline. Each turns a mini-batch into a loss per micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from priml.batch import Batch, Row, collate
from priml.maths.prm_loss import (
    detached_dpo,
    kto,
    kto_anchor,
    likelihood,
    nca,
    nca_weights,
    outcome_cross_entropy,
    pairwise_dpo,
    pairwise_dpo_weights,
    rival_scores,
    sequence_scores,
)
from priml.models.forward import MicroBatch

MicroLoss = Callable[[MicroBatch, Tensor], Tensor]
"""From a micro-batch and its rewards [b, t] to its share of the mini-batch's loss."""

LossName = Literal["ce", "pairwise", "detached", "likelihood", "dpo", "kto", "nca"]


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The responses of one optimizer step, and a way to score responses before the step."""

    batch: Batch
    rows: Sequence[int]
    num_micro_batches: int
    """Over all ranks."""
    score: Callable[[Batch, Sequence[int]], Tensor]
    """Scores [B] of a batch, right for the given rows, without gradient. Costs a forward pass."""
    beta: float
    """The reward scale."""

    @property
    def size(self) -> float:
        return float(len(self.rows))


@dataclass(frozen=True, slots=True)
class PrmLoss:
    """A loss on outcomes. `prepare` computes what depends on other responses of the mini-batch."""

    name: str
    prepare: Callable[[MiniBatch], MicroLoss]
    right_only: bool = False
    """Responses with outcome 0 weigh nothing, so they need no pass."""


def prm_loss(name: LossName, *, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> PrmLoss:
    """The loss of this name. The weights are those of `kto`."""
    if name == "kto":
        return PrmLoss(name, partial(_kto, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight))
    return PrmLoss(name, _LOSSES[name], right_only=name == "likelihood")


def _cross_entropy(mini: MiniBatch) -> MicroLoss:
    return lambda micro, rewards_bt: outcome_cross_entropy(
        rewards_bt, micro.mask_bt, micro.take_rows(mini.batch.outcomes_B), denominator=mini.size
    )


def _pairwise(mini: MiniBatch) -> MicroLoss:
    """The loss couples all responses of a group. If they are split over micro-batches, their scores are collected
    first. Each micro-batch then takes its own part of the gradient and an equal part of the value."""
    outcomes_B, groups_B = mini.batch.outcomes_B, mini.batch.groups_B
    if mini.num_micro_batches == 1:
        return lambda micro, rewards_bt: pairwise_dpo(
            rewards_bt, micro.mask_bt, micro.take_rows(outcomes_B), micro.take_rows(groups_B)
        )
    rows_b = torch.tensor(mini.rows)
    scores_b, outcomes_b, groups_b = mini.score(mini.batch, mini.rows)[rows_b], outcomes_B[rows_b], groups_B[rows_b]
    one_token_b1 = torch.ones(len(rows_b), 1, dtype=torch.bool)
    value = float(pairwise_dpo(scores_b.unsqueeze(1), one_token_b1, outcomes_b, groups_b)) / mini.num_micro_batches
    weights_b = pairwise_dpo_weights(scores_b, outcomes_b, groups_b)
    weights_B = weights_b.new_zeros(len(mini.batch)).index_copy(0, rows_b, weights_b)

    def share(micro: MicroBatch, rewards_bt: Tensor) -> Tensor:
        scores_b = sequence_scores(rewards_bt, micro.mask_bt)
        return value + ((scores_b - scores_b.detach()) * micro.take_rows(weights_B)).sum()

    return share


def _detached(mini: MiniBatch) -> MicroLoss:
    """Each response against the mean score of its rivals, a constant from before the step."""
    rows_b = torch.tensor(mini.rows)
    scores_b = mini.score(mini.batch, mini.rows)[rows_b]
    rivals_b = rival_scores(scores_b, mini.batch.outcomes_B[rows_b], mini.batch.groups_B[rows_b])
    rivals_B = rivals_b.new_zeros(len(mini.batch)).index_copy(0, rows_b, rivals_b)
    return lambda micro, rewards_bt: detached_dpo(
        rewards_bt,
        micro.mask_bt,
        micro.take_rows(mini.batch.outcomes_B),
        micro.take_rows(rivals_B),
        denominator=mini.size,
    )


def _likelihood(mini: MiniBatch) -> MicroLoss:
    rows = torch.tensor(mini.rows)
    num_tokens = float((mini.batch.outcomes_B * mini.batch.response_lengths_B)[rows].sum())
    return lambda micro, rewards_bt: likelihood(
        rewards_bt, micro.mask_bt, micro.take_rows(mini.batch.outcomes_B), beta=mini.beta, denominator=num_tokens
    )


def _kto(mini: MiniBatch, *, desirable_weight: float, undesirable_weight: float) -> MicroLoss:
    others = mismatched(mini.batch)
    anchor = kto_anchor(mini.score(others, range(len(others))))
    return lambda micro, rewards_bt: kto(
        sequence_scores(rewards_bt, micro.mask_bt),
        micro.take_rows(mini.batch.outcomes_B),
        anchor.to(rewards_bt.device),
        denominator=mini.size,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def _nca(mini: MiniBatch) -> MicroLoss:
    pull_B, push_B = nca_weights(mini.batch.outcomes_B, mini.batch.groups_B)
    return lambda micro, rewards_bt: nca(
        sequence_scores(rewards_bt, micro.mask_bt), micro.take_rows(pull_B), micro.take_rows(push_B)
    )


def mismatched(batch: Batch) -> Batch:
    """The prompts of a batch, each with a response to another prompt: that of the next row whose group differs.

    If all rows are of one group, each prompt gets the response of its neighbour.
    """
    groups = batch.groups_B.tolist()
    size = len(groups)
    rows: list[Row] = []
    for i in range(size):
        after = [(i + n) % size for n in range(1, size + 1)]
        j = next((j for j in after if groups[j] != groups[i]), after[0])
        prompt = batch.tokens_BL[i, : batch.prompt_lengths_B[i]].tolist()
        response = slice(int(batch.prompt_lengths_B[j]), int(batch.lengths_B[j]))
        rows.append(
            Row(
                prompt,
                batch.tokens_BL[j, response].numpy(),
                outcome=0.0,
                group=groups[i],
                step_ends=(),
                is_trained=batch.loss_mask_BL[j, response].numpy(),
            )
        )
    return collate(rows, step=batch.step)


_LOSSES: dict[str, Callable[[MiniBatch], MicroLoss]] = {
    "ce": _cross_entropy,
    "pairwise": _pairwise,
    "dpo": _pairwise,
    "detached": _detached,
    "likelihood": _likelihood,
    "nca": _nca,
}
