"""The implicit process reward model, trained online on outcomes alone (arXiv 2502.01456)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from priml.batch import Batch
from priml.distributed.process_group import total
from priml.errors import ModelError, RunError
from priml.files import write_json
from priml.learners.base import PrmReport, ProcessRewards
from priml.learners.optimizer import Optimizer, attach_batch_on_error
from priml.learners.reference import FrozenReference, Reference
from priml.learners.trained import Trained
from priml.maths.implicit import implicit_rewards, step_rewards, whole_response_reward
from priml.maths.prm_loss import (
    abs_accuracy,
    auc,
    detached_dpo,
    outcome_cross_entropy,
    pair_accuracy,
    pairwise_dpo,
    pairwise_dpo_weights,
    rival_scores,
    sequence_scores,
)
from priml.models.checkpoint import save_model, weights_digest
from priml.models.forward import LanguageModel, MicroBatch
from priml.models.prm_card import PrmCard, write_card
from priml.types import Write

BETA_TIMES_LENGTH = 50.0
"""`beta: auto` makes beta * (mean response length) this: the paper's 0.05 at about 1000 tokens. The score is a sum of
log-ratios over the response, so the same beta asks a short response for impossibly large ones."""


_MicroLoss = Callable[[MicroBatch, Tensor], Tensor]
"""From the rewards [b, t] of a micro-batch to its share of the mini-batch's loss."""


class NoPrm:
    """Outcome-only reinforcement learning: process rewards are zero."""

    def update(self, batch: Batch) -> None:
        """Nothing to learn."""

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Zeros."""
        return ProcessRewards(rewards_BT=torch.zeros(1, 1).expand(batch.mask_BT.shape))

    def digest(self) -> None:
        """There are no weights."""

    def stage(self, folder: Path) -> list[Write]:
        """Nothing to write."""
        return []

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
    versions_B: Tensor
    """The PRM's, as in `ProcessRewards`."""


class ImplicitPrm(Trained[LanguageModel]):
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
        stepper: Optimizer,
        *,
        forward: Literal["single", "double", "frozen"],
        loss: Literal["ce", "pairwise", "detached"],
        beta: float | Literal["auto"],
        granularity: Literal["token", "step", "whole"],
        mini_batch: int | None,
        epochs: int,
        reference_source: str | None = None,
        write: Callable[[nn.Module, Any, Path], None] = save_model,
    ) -> None:
        """`reference_source` is the folder or Hub id of a frozen reference, for the note in an exported PRM; `write`
        exports module and tokenizer to a folder."""
        super().__init__(model, tokenizer, stepper, write)
        self.reference = reference
        self._forward = forward
        self._loss = loss
        self._beta = None if beta == "auto" else beta
        self._granularity = granularity
        self._mini_batch = mini_batch
        self._epochs = epochs
        self._frozen = reference.model.module if isinstance(reference, FrozenReference) else None
        self._reference_source = reference_source
        self._scored: _Scored | None = None
        self._version = 0
        """Optimizer steps taken."""

    def update(self, batch: Batch) -> PrmReport:
        """Learn from the batch; remember its log-probs as they were before each mini-batch was learnt from.

        Raises:
            NonFiniteError: before the optimizer moved.
            RunError: the policy wrote a token that the PRM does not have.
        """
        self._check_tokens(batch)
        self._scored = None  # as large as what takes its place
        if self._beta is None:
            self._beta = BETA_TIMES_LENGTH / float(batch.response_lengths_B.float().mean())
        mini_batches = list(whole_groups(batch.groups_B, None if self._forward == "frozen" else self._mini_batch))
        ref_BT, fresh_BT = torch.zeros(batch.mask_BT.shape), torch.zeros(batch.mask_BT.shape)
        for micro in self._micro_batches(batch, mini_batches):
            micro.put(self.reference.logprobs(batch, micro), ref_BT)
        self._model.process_group.sum_(ref_BT)
        steps: list[tuple[float, float]] = []
        versions_B = torch.full((len(batch),), self._version, dtype=torch.int32)
        if self._forward == "frozen":
            self._score(batch, mini_batches, fresh_BT)
        else:
            for number, rows in enumerate(mini_batches):
                versions_B[rows] += number
            for epoch in range(self._epochs):
                prm_BT = fresh_BT if epoch == 0 else torch.zeros_like(fresh_BT)
                steps += [self._learn(batch, rows, ref_BT, prm_BT) for rows in mini_batches]
            self._version += len(steps)
            self._model.process_group.sum_(fresh_BT)
        scored = _Scored(step=batch.step, prm_BT=fresh_BT, ref_BT=ref_BT, versions_B=versions_B)
        report = self._report(batch, scored, steps)
        if self._forward == "double":
            again_B = torch.full_like(versions_B, self._version)
            scored = replace(scored, prm_BT=torch.zeros_like(fresh_BT), versions_B=again_B)
            self._score(batch, mini_batches, scored.prm_BT)
        self._scored = scored
        return report

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Rewards of the batch just learnt from, paid where the granularity says."""
        scored = self._scored
        assert scored is not None, "update comes before rewards"
        assert scored.step == batch.step, "rewards are of the batch just learnt from"
        rewards_BT = self._implicit(scored.prm_BT, scored.ref_BT, batch.mask_BT)
        if self._granularity == "step":
            rewards_BT = step_rewards(rewards_BT, batch.mask_BT, batch.step_ends)
        elif self._granularity == "whole":
            rewards_BT = whole_response_reward(rewards_BT, batch.mask_BT)
        return ProcessRewards(
            rewards_BT=rewards_BT,
            prm_logprobs_BT=scored.prm_BT,
            ref_logprobs_BT=scored.ref_BT,
            beta=self._beta,
            prm_versions_B=scored.versions_B,
        )

    def stage(self, folder: Path) -> list[Write]:
        """Trained weights, optimizer state, beta and version."""
        writes = super().stage(folder)
        if self._model.process_group.rank == 0:
            state = {"beta": self._beta, "version": self._version}
            writes.append(partial(write_json, folder / "prm.json", state))
        return writes

    def load(self, folder: Path) -> None:
        """Restore what was written there."""
        super().load(folder)
        path = folder / "prm.json"
        state = json.loads(path.read_text())
        if "version" not in state:
            raise ModelError(
                f"{path}: found no `version`, the number of steps that the PRM had taken: this checkpoint is of an "
                "older priml; go on with the one that wrote it, or start a new run"
            )
        self._beta, self._version = state["beta"], state["version"]

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, and what the PRM is compared with if that is a model that stays as it is."""
        super().export(folder)
        if self._frozen is not None and self._reference_source is not None and self._beta is not None:
            sha256 = weights_digest(self._frozen)
            card = PrmCard(self._beta, reference=self._reference_source, reference_sha256=sha256, loss=self._loss)
            if self._model.process_group.rank == 0:
                write_card(folder, card)

    def _micro_batches(self, batch: Batch, mini_batches: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        for rows in mini_batches:
            yield from self._model.micro_batches(batch, rows)

    def _implicit(self, prm_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor) -> Tensor:
        assert self._beta is not None, "beta is settled by the first update"
        return implicit_rewards(prm_BT, ref_BT, mask_BT, beta=self._beta)

    def _learn(self, batch: Batch, rows: Sequence[int], ref_BT: Tensor, prm_BT: Tensor) -> tuple[float, float]:
        """One optimizer step on whole groups, (loss, gradient norm); puts the log-probs it saw into `prm_BT`."""
        share = 0.0
        with attach_batch_on_error(batch, ref_logprobs=ref_BT), self._model.training():
            micros = list(self._model.micro_batches(batch, rows))
            loss_of = self._batch_loss(batch, rows, micros, ref_BT)
            for micro in micros:
                prm_bt, _ = self._model.score(micro, temperature=self.reference.temperature)
                micro.put(prm_bt, prm_BT)
                loss = loss_of(micro, self._implicit(prm_bt, micro.take(ref_BT), micro.mask_bt))
                loss.backward()
                share += float(loss.detach())
            whole = total(self._model.process_group, share)
            return whole, self._stepper.step(whole)

    def _batch_loss(
        self, batch: Batch, rows: Sequence[int], micros: Sequence[MicroBatch], ref_BT: Tensor
    ) -> _MicroLoss:
        """The loss of a mini-batch of these `rows`, of which `micros` are this rank's."""
        if self._loss == "ce":
            return self._cross_entropy(batch, rows)
        if self._loss == "pairwise":
            return self._pairwise(batch, rows, micros, ref_BT)
        return self._detached(batch, rows, micros, ref_BT)

    def _cross_entropy(self, batch: Batch, rows: Sequence[int]) -> _MicroLoss:
        denominator = float(len(rows))
        return lambda micro, rewards_bt: outcome_cross_entropy(
            rewards_bt, micro.mask_bt, micro.take_rows(batch.outcomes_B), denominator=denominator
        )

    def _pairwise(self, batch: Batch, rows: Sequence[int], micros: Sequence[MicroBatch], ref_BT: Tensor) -> _MicroLoss:
        """A loss that couples all responses of a group. When they do not fit into one micro-batch, their scores are
        collected first; then each micro-batch takes its own part of the gradient and an equal part of the value."""
        parts = len(micros) * self._model.process_group.size  # each rank has as many
        if parts == 1:
            return lambda micro, rewards_bt: pairwise_dpo(
                rewards_bt, micro.mask_bt, micro.take_rows(batch.outcomes_B), micro.take_rows(batch.groups_B)
            )
        rows_b, rewards_bT = self._rewards_before(batch, rows, micros, ref_BT)
        mask_bT, outcomes_b, groups_b = batch.mask_BT[rows_b], batch.outcomes_B[rows_b], batch.groups_B[rows_b]
        value = float(pairwise_dpo(rewards_bT, mask_bT, outcomes_b, groups_b)) / parts
        weights_b = pairwise_dpo_weights(sequence_scores(rewards_bT, mask_bT), outcomes_b, groups_b)
        weights_B = weights_b.new_zeros(len(batch)).index_copy(0, rows_b, weights_b)

        def share(micro: MicroBatch, rewards_bt: Tensor) -> Tensor:
            scores_b = sequence_scores(rewards_bt, micro.mask_bt)
            return value + ((scores_b - scores_b.detach()) * micro.take_rows(weights_B)).sum()

        return share

    def _detached(self, batch: Batch, rows: Sequence[int], micros: Sequence[MicroBatch], ref_BT: Tensor) -> _MicroLoss:
        """Each response against the mean score of its rivals, a constant from before the step."""
        rows_b, rewards_bT = self._rewards_before(batch, rows, micros, ref_BT)
        scores_b = sequence_scores(rewards_bT, batch.mask_BT[rows_b])
        rivals_b = rival_scores(scores_b, batch.outcomes_B[rows_b], batch.groups_B[rows_b])
        rivals_B = rivals_b.new_zeros(len(batch)).index_copy(0, rows_b, rivals_b)
        return lambda micro, rewards_bt: detached_dpo(
            rewards_bt,
            micro.mask_bt,
            micro.take_rows(batch.outcomes_B),
            micro.take_rows(rivals_B),
            denominator=float(len(rows_b)),
        )

    @torch.no_grad()
    def _rewards_before(
        self, batch: Batch, rows: Sequence[int], micros: Sequence[MicroBatch], ref_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The rows of a mini-batch and their rewards before it is learnt from: the price of a loss that compares."""
        rows_b, prm_BT = torch.tensor(self._model.in_order(batch, rows)), torch.zeros_like(ref_BT)
        for micro in micros:
            micro.put(self._model.score(micro, temperature=self.reference.temperature)[0], prm_BT)
        self._model.process_group.sum_(prm_BT)
        return rows_b, self._implicit(prm_BT, ref_BT, batch.mask_BT)[rows_b]

    def _check_tokens(self, batch: Batch) -> None:
        """Heads are padded beyond the tokenizer, to different sizes in one family; nobody should sample such a row."""
        highest = int(batch.tokens_BL.max())
        if highest >= self._model.vocabulary:
            raise RunError(
                f"the policy wrote token {highest}, which its tokenizer does not have, and neither has the PRM with "
                f"its {self._model.vocabulary} output tokens; use prm.init: initial"
            )

    @torch.no_grad()
    def _score(self, batch: Batch, mini_batches: Sequence[Sequence[int]], into_BT: Tensor) -> None:
        for micro in self._micro_batches(batch, mini_batches):
            micro.put(self._model.score(micro, temperature=self.reference.temperature)[0], into_BT)
        self._model.process_group.sum_(into_BT)

    def _report(self, batch: Batch, scored: _Scored, steps: Sequence[tuple[float, float]]) -> PrmReport:
        assert self._beta is not None
        mask_BT, outcomes_B = batch.mask_BT, batch.outcomes_B
        rewards_BT = self._implicit(scored.prm_BT, scored.ref_BT, mask_BT)
        scores_B = sequence_scores(rewards_BT, mask_BT)
        area = auc(scores_B, outcomes_B > 0.5)
        return PrmReport(
            beta=self._beta,
            accuracy=float(abs_accuracy(rewards_BT, mask_BT, outcomes_B)),
            pair_accuracy=float(pair_accuracy(rewards_BT, mask_BT, outcomes_B, batch.groups_B)),
            reward_mean=float(scores_B.mean()),
            auc=None if area is None else float(area),
            length_correlation=_correlation(scores_B, batch.response_lengths_B.float()),
            loss=sum(loss for loss, _ in steps) / len(steps) if steps else None,
            grad_norm=sum(norm for _, norm in steps) / len(steps) if steps else None,
        )


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


def _correlation(x_B: Tensor, y_B: Tensor) -> float | None:
    if len(x_B) < 2 or float(x_B.std()) == 0.0 or float(y_B.std()) == 0.0:
        return None
    return float(torch.corrcoef(torch.stack([x_B, y_B]))[0, 1])
