"""Supervised fine-tuning: the negative log-likelihood of the response, per token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from priml.batch import Batch
from priml.models.checkpoint import save_model
from priml.models.forward import LanguageModel
from priml.roles.optim import Stepper, keeping_evidence


class SupervisedModel:
    """A language model learning from given responses."""

    def __init__(self, model: LanguageModel, tokenizer: Any, stepper: Stepper) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._stepper = stepper

    def update(self, batch: Batch, *, lr_scale: float) -> tuple[float, float]:
        """One optimizer step; returns the mean loss per response token (nats) and the gradient norm.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        tokens = int(batch.response_lengths_B.sum())
        total = 0.0
        with keeping_evidence(batch), self._model.training():
            for micro in self._model.micro_batches(batch, range(len(batch))):
                logprobs_bt, _ = self._model.score(micro)
                loss = -logprobs_bt.sum() / tokens
                loss.backward()
                total += float(loss.detach())
            return total, self._stepper.step(total, lr_scale=lr_scale)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
        save_model(self._model.module, self._tokenizer, folder)
