"""Supervised fine-tuning: the negative log-likelihood of the response, per token."""

from __future__ import annotations

from dataclasses import dataclass

from priml.batch import Batch
from priml.learners.base import Report
from priml.learners.optimizer import attach_batch_on_error
from priml.learners.trained import Trained
from priml.models.forward import LanguageModel


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


class SupervisedModel(Trained[LanguageModel]):
    """A language model learning from given responses."""

    def update(self, batch: Batch, *, lr_scale: float) -> SftReport:
        """One optimizer step on the response tokens; the prompt has no loss.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        tokens = int(batch.response_lengths_B.sum())
        total = 0.0
        with attach_batch_on_error(batch), self.model.training():
            for micro in self.model.micro_batches(batch, range(len(batch))):
                logprobs_bt, _ = self.model.score(micro)
                loss = -logprobs_bt.sum() / tokens
                loss.backward()
                total += float(loss.detach())
            norm = self.optimizer.step(total, lr_scale=lr_scale)
        return SftReport(loss=total, grad_norm=norm, lr_scale=lr_scale)
