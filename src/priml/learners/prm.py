"""The implicit process reward model, trained on outcomes alone: online (arXiv 2502.01456) or offline (2412.01981)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from priml.batch import Batch
from priml.errors import ModelError, RunError
from priml.files import write_json
from priml.learners.base import PrmReport, ProcessRewards
from priml.learners.engine import LanguageEngine, Trained
from priml.learners.optimizer import attach_batch_on_error
from priml.learners.prm_losses import MiniBatch, PrmLoss
from priml.learners.reference import Reference
from priml.learners.replay import Replay
from priml.maths.implicit import implicit_rewards, step_rewards, whole_response_reward
from priml.maths.masking import group_max
from priml.maths.prm_loss import abs_accuracy, auc, pair_accuracy, sequence_scores
from priml.models.forward import MicroBatch
from priml.models.prm_card import PrmCard, write_card
from priml.types import Write

BETA_TIMES_LENGTH = 50.0
"""`beta: auto` makes beta * (mean response length) this: the paper's 0.05 at about 1000 tokens. The score is a sum of
log-ratios over the response, so the same beta asks a short response for impossibly large ones."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """The log-probs of the current batch; versions as in `ProcessRewards`."""

    step: int
    prm_BT: Tensor
    ref_BT: Tensor
    versions_B: Tensor


@dataclass(eq=False, kw_only=True)
class ImplicitPrm(Trained[LanguageEngine]):
    """Token rewards beta * (log pi_prm - log pi_ref), with pi_prm trained on outcomes."""

    reference: Reference
    loss: PrmLoss
    beta: float | None
    """None: the first batch sets it, see `BETA_TIMES_LENGTH`."""
    forward: Literal["single", "double", "frozen"] = "single"
    """The paper's choice of order. `single`: the rewards are those of the forward passes that train. So the PRM has not
    learnt from a mini-batch when it rewards it, but from earlier ones. `double`: the batch is scored again after the
    update. `frozen`: no update."""
    granularity: Literal["token", "step", "whole"] = "token"
    mini_batch: int | None = None
    epochs: int = 1
    replay: Replay | None = None
    """Responses of earlier steps that it learns from again; None: none."""
    reference_source: str | None = None
    """Folder or Hub id of the reference, for the card of an exported PRM."""
    version: int = field(default=0, init=False)
    """Optimizer steps taken."""
    _scored: _Scored | None = field(default=None, init=False)

    def update(self, batch: Batch, *, lr_scale: float = 1.0) -> PrmReport:
        """Learn from the batch; remember its log-probs as they were before each mini-batch was learnt from.

        Raises:
            NonFiniteError: before the optimizer moved.
            RunError: the policy wrote a token that the PRM does not have.
        """
        self._check_tokens(batch)
        self._scored = None  # as large as its successor
        if self.beta is None:
            self.beta = BETA_TIMES_LENGTH / float(batch.response_lengths_B.float().mean())
        mini_batches = list(whole_groups(batch.groups_B, None if self.forward == "frozen" else self.mini_batch))
        ref_BT = self._collected(batch, mini_batches, self.reference.logprobs)
        fresh_BT = torch.zeros(batch.mask_BT.shape)
        steps: list[tuple[float, float]] = []
        versions_B = torch.full((len(batch),), self.version, dtype=torch.int32)
        if self.forward == "frozen":
            fresh_BT = self._collected(batch, mini_batches, self._logprobs)
        elif self.loss.right_only:
            fresh_BT = self._collected(batch, mini_batches, self._logprobs)  # training passes over the right ones only
            steps = self._learn_from_right(batch, ref_BT, lr_scale)
        else:
            for number, rows in enumerate(mini_batches):
                versions_B[rows] += number
            for epoch in range(self.epochs):
                prm_BT = fresh_BT if epoch == 0 else None
                steps += [self._learn(batch, rows, ref_BT, prm_BT, lr_scale) for rows in mini_batches]
            self.engine.process_group.sum_(fresh_BT)
        steps += self._learn_again(batch, ref_BT, lr_scale)
        self.version += len(steps)
        scored = _Scored(step=batch.step, prm_BT=fresh_BT, ref_BT=ref_BT, versions_B=versions_B)
        scores_B = sequence_scores(self._implicit(fresh_BT, ref_BT, batch.mask_BT), batch.mask_BT)
        report = self._report(batch, scores_B, steps, lr_scale)
        if self.forward == "double":
            again_B = torch.full_like(versions_B, self.version)
            scored = replace(scored, prm_BT=self._collected(batch, mini_batches, self._logprobs), versions_B=again_B)
        self._scored = scored
        return report

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Rewards of the batch just learnt from, placed where the granularity says."""
        scored = self._scored
        assert scored is not None, "update comes before rewards"
        assert scored.step == batch.step, "rewards are of the batch just learnt from"
        rewards_BT = self._implicit(scored.prm_BT, scored.ref_BT, batch.mask_BT)
        if self.granularity == "step":
            rewards_BT = step_rewards(rewards_BT, batch.mask_BT, batch.step_ends)
        elif self.granularity == "whole":
            rewards_BT = whole_response_reward(rewards_BT, batch.mask_BT)
        return ProcessRewards(
            rewards_BT=rewards_BT,
            prm_logprobs_BT=scored.prm_BT,
            ref_logprobs_BT=scored.ref_BT,
            beta=self.beta,
            prm_versions_B=scored.versions_B,
        )

    def stage(self, folder: Path) -> list[Write]:
        writes = super().stage(folder)
        if self.engine.process_group.rank == 0:
            state = {"beta": self.beta, "version": self.version}
            writes.append(partial(write_json, folder / "prm.json", state))
            writes += self.replay.stage(folder) if self.replay else []
        return writes

    def load(self, folder: Path) -> None:
        super().load(folder)
        path = folder / "prm.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        if "version" not in state:
            raise ModelError(
                f"{path}: found no `version`, the number of steps that the PRM had taken: this checkpoint is of an "
                "older priml; go on with the one that wrote it, or start a new run"
            )
        self.beta, self.version = state["beta"], state["version"]
        if self.replay is not None:
            self.replay.load(folder)

    def export(self, folder: Path) -> None:
        super().export(folder)
        if self.reference_source is not None and self.beta is not None:
            sha256 = self.reference.digest()
            card = PrmCard(self.beta, self.reference_source, reference_sha256=sha256, loss=self.loss.name)
            if self.engine.process_group.rank == 0:
                write_card(folder, card)

    def _implicit(self, prm_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor) -> Tensor:
        assert self.beta is not None, "the first update sets beta"
        return implicit_rewards(prm_BT, ref_BT, mask_BT, beta=self.beta)

    def _learn(
        self, batch: Batch, rows: Sequence[int], ref_BT: Tensor, prm_BT: Tensor | None, lr_scale: float = 1.0
    ) -> tuple[float, float]:
        """One optimizer step on whole groups. Returns loss and gradient norm; `prm_BT` gets its log-probs."""
        count = self.engine.count_micro_batches(batch, rows)
        with attach_batch_on_error(batch, ref_logprobs=ref_BT):
            assert self.beta is not None, "the first update sets beta"
            mini = MiniBatch(batch, rows, count, partial(self._scores, batch, ref_BT), beta=self.beta)
            loss_fn = self.loss.prepare(mini)

            def remembered(micro: MicroBatch, scores: tuple[Tensor, Tensor]) -> Tensor:
                prm_bt, _ = scores
                if prm_BT is not None:
                    micro.put(prm_bt, prm_BT)
                return loss_fn(micro, self._implicit(prm_bt, micro.take(ref_BT), micro.mask_bt))

            loss = self.engine.accumulate(batch, rows, remembered, temperature=self.reference.temperature)
            return loss, self.engine.step(loss, lr_scale=lr_scale)

    def _learn_from_right(self, batch: Batch, ref_BT: Tensor, lr_scale: float) -> list[tuple[float, float]]:
        """Optimizer steps on the responses with an outcome above 0."""
        right = self._learnable(batch)
        groups = whole_groups(batch.groups_B[right], self.mini_batch) if right else []
        mini_batches = [[right[i] for i in rows] for rows in groups]
        passes = [rows for _ in range(self.epochs) for rows in mini_batches]
        return [self._learn(batch, rows, ref_BT, None, lr_scale) for rows in passes]

    def _learn_again(self, batch: Batch, ref_BT: Tensor, lr_scale: float) -> list[tuple[float, float]]:
        """Keep the batch, and learn from what was kept."""
        if self.replay is None:
            return []
        self.replay.add(batch, self._learnable(batch), ref_BT)
        return [
            self._learn(kept, range(len(kept)), kept_ref_BT, None, lr_scale)
            for kept, kept_ref_BT in self.replay.draw(batch.step, len(batch), self.mini_batch)
        ]

    def _learnable(self, batch: Batch) -> list[int]:
        """Rows that the loss learns from."""
        rows = range(len(batch))
        return [row for row in rows if batch.outcomes_B[row] > 0] if self.loss.right_only else list(rows)

    def _scores(self, batch: Batch, ref_BT: Tensor, scored: Batch, rows: Sequence[int]) -> Tensor:
        """Scores [B] of the batch `scored`, right for these rows. `ref_BT` are the reference log-probs of `batch`."""
        if scored is not batch:
            ref_BT = self.reference.logprobs(scored, rows)
        rewards_BT = self._implicit(self._logprobs(scored, rows), ref_BT, scored.mask_BT)
        return sequence_scores(rewards_BT, scored.mask_BT)

    def _collected(
        self,
        batch: Batch,
        mini_batches: Sequence[Sequence[int]],
        logprobs: Callable[[Batch, Sequence[int]], Tensor],
    ) -> Tensor:
        """Log-probs [B, T] of the batch, in the shapes of training: before it, PRM and reference agree to the bit."""
        logprobs_BT = torch.zeros(batch.mask_BT.shape)
        for rows in mini_batches:
            logprobs_BT[rows] = logprobs(batch, rows)[rows]
        return logprobs_BT

    def _logprobs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Log-probs [B, T] under the PRM, 0 in other rows."""
        return self.engine.scores(batch, rows, temperature=self.reference.temperature).logprobs_BT

    def _check_tokens(self, batch: Batch) -> None:
        """Models of one family pad their heads beyond the tokenizer to different sizes."""
        highest = int(batch.tokens_BL.max())
        if highest >= self.engine.vocabulary:
            raise RunError(
                f"the policy wrote token {highest}, which its tokenizer does not have, and neither has the PRM with "
                f"its {self.engine.vocabulary} tokens; use prm.init: initial"
            )

    def _report(
        self, batch: Batch, scores_B: Tensor, steps: Sequence[tuple[float, float]], lr_scale: float
    ) -> PrmReport:
        """`scores_B` from before the update; loss and gradient norm of each optimizer step."""
        scores_B1 = scores_B.unsqueeze(1)
        return PrmReport(
            beta=self.beta,
            pair_accuracy=float(
                pair_accuracy(scores_B1, torch.ones_like(scores_B1).bool(), batch.outcomes_B, batch.groups_B)
            ),
            **mixed_accuracy(scores_B, batch.outcomes_B, batch.groups_B),
            loss=sum(loss for loss, _ in steps) / len(steps) if steps else None,
            grad_norm=sum(norm for _, norm in steps) / len(steps) if steps else None,
            **outcome_agreement(scores_B, batch.outcomes_B, batch.response_lengths_B),
        )


def outcome_agreement(scores_B: Tensor, outcomes_B: Tensor, lengths_B: Tensor) -> dict[str, float]:
    """`accuracy` (sign of the score), `auc`, `reward_mean` (mean score) and `length_correlation` of responses.

    What is undefined is left out: `auc` if all outcomes are alike, the correlation if scores or lengths do not vary.
    """
    scores_B1 = scores_B.unsqueeze(1)
    found: dict[str, Tensor | None] = {
        "accuracy": abs_accuracy(scores_B1, torch.ones_like(scores_B1).bool(), outcomes_B),
        "auc": auc(scores_B, outcomes_B > 0.5),
        "reward_mean": scores_B.mean(),
        "length_correlation": _correlation(scores_B, lengths_B.to(scores_B.dtype)),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def mixed_accuracy(scores_B: Tensor, outcomes_B: Tensor, groups_B: Tensor) -> dict[str, float]:
    """`mixed_groups`, how many groups have outcomes that differ, and `mixed_accuracy`, the pair accuracy of those."""
    is_mixed_B = group_max(outcomes_B, groups_B) > -group_max(-outcomes_B, groups_B)
    if not bool(is_mixed_B.any()):
        return {"mixed_groups": 0}
    scores_M1 = scores_B[is_mixed_B].unsqueeze(1)
    one_token_M1 = torch.ones_like(scores_M1, dtype=torch.bool)
    accuracy = pair_accuracy(scores_M1, one_token_M1, outcomes_B[is_mixed_B], groups_B[is_mixed_B])
    return {"mixed_groups": len(groups_B[is_mixed_B].unique()), "mixed_accuracy": float(accuracy)}


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


def _correlation(x_B: Tensor, y_B: Tensor) -> Tensor | None:
    if len(x_B) < 2 or float(x_B.std()) == 0.0 or float(y_B.std()) == 0.0:
        return None
    return torch.corrcoef(torch.stack([x_B, y_B]))[0, 1]
