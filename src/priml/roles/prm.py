"""The implicit process reward model, trained online on outcomes alone (arXiv 2502.01456)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from priml.batch import Batch
from priml.maths.implicit import implicit_rewards, step_rewards, whole_response_reward
from priml.maths.prm_loss import (
    abs_accuracy,
    auc,
    outcome_cross_entropy,
    pair_accuracy,
    pairwise_dpo,
    pairwise_dpo_weights,
    sequence_scores,
)
from priml.models.checkpoint import load_weights, save_model, save_weights, weights_digest
from priml.models.forward import LanguageModel, MicroBatch
from priml.roles.base import PrmReport, ProcessRewards
from priml.roles.optim import Stepper, keeping_evidence

BETA_TIMES_LENGTH = 50.0
"""`beta: auto` makes beta * (mean response length) this: the paper's 0.05 at about 1000 tokens. The score is a sum of
log-ratios over the response, so the same beta asks a short response for impossibly large ones."""


class Reference(Protocol):
    """What the PRM's log-probs are compared with."""

    def logprobs(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """[b, t] log-probs of the micro-batch's response tokens, no gradient."""
        ...


class FrozenReference:
    """The initial model, never trained (the paper's default)."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @torch.no_grad()
    def logprobs(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """Score with the frozen model: same shapes and code path as the PRM, so equal weights give exactly equal numbers."""
        return self._model.score(micro)[0]


class RolloutReference:
    """The policy that produced the responses, through the log-probs it already has: no third model."""

    def logprobs(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """The rollout policy's log-probs."""
        return micro.take(batch.old_logprobs_BT)


class NoPrm:
    """Outcome-only reinforcement learning: process rewards are zero."""

    def update(self, batch: Batch) -> None:
        """Nothing to learn."""

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Zeros."""
        return ProcessRewards(rewards_BT=torch.zeros(batch.mask_BT.shape))

    def digest(self) -> None:
        """There are no weights."""

    def save(self, folder: Path) -> None:
        """Nothing to save."""

    def load(self, folder: Path) -> None:
        """Nothing to load."""

    def export(self, folder: Path) -> None:
        """Nothing to export."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """The log-probs of the batch in hand."""

    step: int
    prm_BT: Tensor
    ref_BT: Tensor


class ImplicitPrm:
    """Token rewards beta * (log pi_prm - log pi_ref), with pi_prm trained on outcomes.

    `forward` is the paper's choice of order. `single`: the rewards are those of the passes that train, so each
    mini-batch is paid by the PRM that has not learnt from it yet (with several mini-batches, but from the earlier
    ones). `double`: the batch is scored again after the update. `frozen`: no update.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        reference: Reference,
        stepper: Stepper,
        *,
        forward: Literal["single", "double", "frozen"],
        loss: Literal["ce", "pairwise"],
        beta: float | Literal["auto"],
        granularity: Literal["token", "step", "whole"],
        mini_batch: int | None,
        epochs: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.reference = reference
        self._stepper = stepper
        self._forward = forward
        self._loss = loss
        self._beta = None if beta == "auto" else beta
        self._granularity = granularity
        self._mini_batch = mini_batch
        self._epochs = epochs
        self._scored: _Scored | None = None

    def update(self, batch: Batch) -> PrmReport:
        """Learn from the batch; remember its log-probs as they were before each mini-batch was learnt from.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        if self._beta is None:
            self._beta = BETA_TIMES_LENGTH / float(batch.response_lengths_B.float().mean())
        prm_BT, ref_BT = torch.zeros(batch.mask_BT.shape), torch.zeros(batch.mask_BT.shape)
        losses: list[float] = []
        norms: list[float] = []
        for epoch in range(1 if self._forward == "frozen" else self._epochs):
            for rows in whole_groups(batch.groups_B, self._mini_batch):
                keep = (prm_BT, ref_BT) if epoch == 0 else None
                if self._forward == "frozen":
                    self._score(batch, rows, prm_BT, ref_BT)
                else:
                    loss, norm = self._learn(batch, rows, keep)
                    losses.append(loss)
                    norms.append(norm)
        fresh = _Scored(step=batch.step, prm_BT=prm_BT, ref_BT=ref_BT)
        self._scored = fresh
        report = self._report(batch, fresh, losses, norms)
        if self._forward == "double":
            after_BT = torch.zeros_like(prm_BT)
            for rows in whole_groups(batch.groups_B, self._mini_batch):
                self._score(batch, rows, after_BT, None)
            self._scored = _Scored(step=batch.step, prm_BT=after_BT, ref_BT=ref_BT)
        return report

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Rewards of the batch just learnt from, paid where the granularity says."""
        scored = self._scored
        assert scored is not None and scored.step == batch.step, "update comes before rewards"
        assert self._beta is not None
        rewards_BT = implicit_rewards(scored.prm_BT, scored.ref_BT, batch.mask_BT, beta=self._beta)
        if self._granularity == "step":
            rewards_BT = step_rewards(rewards_BT, batch.mask_BT, batch.step_ends)
        elif self._granularity == "whole":
            rewards_BT = whole_response_reward(rewards_BT, batch.mask_BT)
        return ProcessRewards(
            rewards_BT=rewards_BT, prm_logprobs_BT=scored.prm_BT, ref_logprobs_BT=scored.ref_BT, beta=self._beta
        )

    def digest(self) -> str:
        """sha256 of the weights."""
        return weights_digest(self._model.module)

    def save(self, folder: Path) -> None:
        """Weights, optimizer state and beta."""
        save_weights(self._model.module, folder / "weights.safetensors")
        self._stepper.save(folder)
        (folder / "prm.json").write_text(json.dumps({"beta": self._beta}))

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        load_weights(self._model.module, folder / "weights.safetensors")
        self._stepper.load(folder)
        self._beta = json.loads((folder / "prm.json").read_text())["beta"]

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
        save_model(self._model.module, self._tokenizer, folder)

    def _learn(self, batch: Batch, rows: Sequence[int], keep: tuple[Tensor, Tensor] | None) -> tuple[float, float]:
        """One optimizer step on whole groups; writes the log-probs of its own forward passes into `keep`."""
        assert self._beta is not None
        micros = list(self._model.micro_batches(batch, rows))
        pairs = _PairwiseTargets(batch, rows) if self._loss == "pairwise" else None
        if pairs is not None and len(micros) > 1:
            # The loss couples responses that do not fit in memory together: collect their scores first.
            scores_B = torch.zeros(len(batch))
            for micro in micros:
                with torch.no_grad():
                    rewards_bt, _, _ = self._rewards(batch, micro)
                scores_B[micro.rows_b] = sequence_scores(rewards_bt, micro.mask_bt).cpu()
            pairs.set(scores_B)
        total = 0.0
        with keeping_evidence(batch), self._model.training():
            for micro in micros:
                rewards_bt, prm_bt, ref_bt = self._rewards(batch, micro)
                outcomes_b = micro.take_rows(batch.outcomes_B)
                if pairs is None:
                    loss = outcome_cross_entropy(rewards_bt, micro.mask_bt, outcomes_b, denominator=float(len(rows)))
                    total += float(loss.detach())
                else:
                    loss = pairs.surrogate(micro, sequence_scores(rewards_bt, micro.mask_bt))
                loss.backward()
                if keep is not None:
                    _put(keep[0], micro, prm_bt)
                    _put(keep[1], micro, ref_bt)
            if pairs is not None:
                total = pairs.loss()
            norm = self._stepper.step(total)
        return total, norm

    @torch.no_grad()
    def _score(self, batch: Batch, rows: Sequence[int], prm_BT: Tensor, ref_BT: Tensor | None) -> None:
        for micro in self._model.micro_batches(batch, rows):
            _put(prm_BT, micro, self._model.score(micro)[0])
            if ref_BT is not None:
                _put(ref_BT, micro, self.reference.logprobs(batch, micro))

    def _rewards(self, batch: Batch, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        assert self._beta is not None
        ref_bt = self.reference.logprobs(batch, micro)
        prm_bt, _ = self._model.score(micro)
        return implicit_rewards(prm_bt, ref_bt, micro.mask_bt, beta=self._beta), prm_bt, ref_bt

    def _report(self, batch: Batch, scored: _Scored, losses: Sequence[float], norms: Sequence[float]) -> PrmReport:
        assert self._beta is not None
        mask_BT, outcomes_B = batch.mask_BT, batch.outcomes_B
        rewards_BT = implicit_rewards(scored.prm_BT, scored.ref_BT, mask_BT, beta=self._beta)
        scores_B = sequence_scores(rewards_BT, mask_BT)
        area = auc(scores_B, outcomes_B > 0.5)
        return PrmReport(
            beta=self._beta,
            accuracy=float(abs_accuracy(rewards_BT, mask_BT, outcomes_B)),
            pair_accuracy=float(pair_accuracy(rewards_BT, mask_BT, outcomes_B, batch.groups_B)),
            reward_mean=float(scores_B.mean()),
            auc=None if area is None else float(area),
            length_correlation=_correlation(scores_B, batch.response_lengths_B.float()),
            loss=sum(losses) / len(losses) if losses else None,
            grad_norm=sum(norms) / len(norms) if norms else None,
        )


class _PairwiseTargets:
    """The pairwise loss of a mini-batch as one number per response, so that it splits over micro-batches exactly."""

    def __init__(self, batch: Batch, rows: Sequence[int]) -> None:
        self._batch = batch
        self._rows = list(rows)
        self._scores_B: Tensor | None = None

    def set(self, scores_B: Tensor) -> None:
        """The scores of all the rows."""
        self._scores_B = scores_B

    def surrogate(self, micro: MicroBatch, scores_b: Tensor) -> Tensor:
        """A loss whose gradient is the pairwise loss's share of this micro-batch."""
        if self._scores_B is None:  # the micro-batch is the whole mini-batch
            scores_B = torch.zeros(len(self._batch))
            scores_B[micro.rows_b] = scores_b.detach().cpu()
            self.set(scores_B)
        assert self._scores_B is not None
        weights_B = torch.zeros(len(self._batch))
        weights_B[self._rows] = pairwise_dpo_weights(
            self._scores_B[self._rows], self._batch.outcomes_B[self._rows], self._batch.groups_B[self._rows]
        )
        return (scores_b * micro.take_rows(weights_B)).sum()

    def loss(self) -> float:
        """The value of the pairwise loss."""
        assert self._scores_B is not None
        scores_b = self._scores_B[self._rows].unsqueeze(1)
        outcomes_b, groups_b = self._batch.outcomes_B[self._rows], self._batch.groups_B[self._rows]
        return float(pairwise_dpo(scores_b, torch.ones_like(scores_b, dtype=torch.bool), outcomes_b, groups_b))


def whole_groups(groups_B: Tensor, mini_batch: int | None) -> Iterator[list[int]]:
    """Rows in mini-batches of about `mini_batch` responses, never splitting a group; batch order otherwise."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups_B.tolist()):
        members.setdefault(group, []).append(row)
    rows: list[int] = []
    for group in members.values():
        if rows and mini_batch is not None and len(rows) + len(group) > mini_batch:
            yield rows
            rows = []
        rows = rows + group
    yield rows


def _put(x_BT: Tensor, micro: MicroBatch, x_bt: Tensor) -> None:
    x_BT[micro.rows_b, : x_bt.shape[1]] = x_bt.detach().float().cpu()


def _correlation(x_B: Tensor, y_B: Tensor) -> float | None:
    if len(x_B) < 2 or float(x_B.std()) == 0.0 or float(y_B.std()) == 0.0:
        return None
    return float(torch.corrcoef(torch.stack([x_B, y_B]))[0, 1])
