"""Supervised fine-tuning: the negative log-likelihood of the response, per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from priml.batch import Batch
from priml.learners.base import Report
from priml.learners.engine import LanguageEngine, Trained
from priml.learners.optimizer import attach_batch_on_error
from priml.models.forward import MicroBatch


@dataclass(frozen=True, slots=True)
class SftReport(Report):
    """How one step went."""

    prefix = "sft"

    loss: float
    """Mean negative log-likelihood of a response token before the step, nats."""
    grad_norm: float
    """Before clipping."""
    lr_scale: float
    """Share of the peak learning rate."""


class SupervisedModel(Trained[LanguageEngine]):
    """A language model learning from given responses."""

    def update(self, batch: Batch, *, lr_scale: float) -> SftReport:
        """One optimizer step on the response tokens; the prompt has no loss.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        tokens = int(batch.response_lengths_B.sum())

        def mean_nll(micro: MicroBatch, scores: tuple[Tensor, Tensor]) -> Tensor:
            return -scores[0].sum() / tokens

        with attach_batch_on_error(batch):
            loss = self.engine.accumulate(batch, range(len(batch)), mean_nll)
            norm = self.engine.step(loss, lr_scale=lr_scale)
        return SftReport(loss=loss, grad_norm=norm, lr_scale=lr_scale)

    def evaluate(self, batches: Sequence[Batch]) -> dict[str, float]:
        """`loss` on responses that are not learnt from: of all their trained tokens, nats per token."""
        total = -sum(float(self.engine.scores(batch).logprobs_BT.double().sum()) for batch in batches)
        return {"loss": total / sum(int(batch.response_lengths_B.sum()) for batch in batches)}
