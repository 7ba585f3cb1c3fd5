"""The policy: clipped policy-gradient steps on given advantages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from priml.batch import Batch
from priml.maths.masking import masked_mean
from priml.maths.policy_loss import SurrogateStats, clipped_surrogate
from priml.models.checkpoint import load_weights, save_model, save_weights, weights_digest
from priml.models.forward import LanguageModel
from priml.roles.base import PolicyReport
from priml.roles.optim import Stepper, keeping_evidence


class LocalWeights:
    """A `WeightSource` within one process: the live module itself."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def module(self) -> Any:
        """The live module."""
        return self._module


class LocalPolicy:
    """A `Policy` on one device."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        stepper: Stepper,
        *,
        mini_batch: int | None,
        epochs: int,
        temperature: float,
        clip_low: float,
        clip_high: float,
        aggregate: Literal["token_mean", "sequence_mean"],
        seed: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._stepper = stepper
        self._mini_batch = mini_batch
        self._epochs = epochs
        self._temperature = temperature
        self._clip_low = clip_low
        self._clip_high = clip_high
        self._aggregate: Literal["token_mean", "sequence_mean"] = aggregate
        self._seed = seed

    def recall(self, batch: Batch) -> Batch:
        """The batch with this policy's scores, recomputed by the trainer: sampler numbers differ in the last digits."""
        return batch.with_old(self._model.scores(batch, temperature=self._temperature))

    def update(self, batch: Batch, advantages_BT: Tensor) -> PolicyReport:
        """One optimizer step per mini-batch, `epochs` times over the batch.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        assert batch.old is not None, "recall the batch first"
        losses: list[float] = []
        norms: list[float] = []
        stats: list[SurrogateStats] = []
        with keeping_evidence(batch, advantages=advantages_BT), self._model.training():
            for rows in self._mini_batches(batch):
                loss = 0.0
                for micro_loss, micro_stats in self._backward(batch, advantages_BT, rows):
                    loss += micro_loss
                    stats.append(micro_stats)
                norms.append(self._stepper.step(loss))
                losses.append(loss)
        total = sum(stats[1:], start=stats[0])
        return PolicyReport(
            loss=sum(losses) / len(losses),
            grad_norm=sum(norms) / len(norms),
            entropy=float(masked_mean(batch.old.entropies_BT, batch.mask_BT)),
            clip_fraction=float(total.clip_fraction),
            kl_old=float(total.kl_k3),
            ratio_max=float(total.ratio_max),
        )

    def weights(self) -> LocalWeights:
        """The live module."""
        return LocalWeights(self._model.module)

    def digest(self) -> str:
        """sha256 of the weights."""
        return weights_digest(self._model.module)

    def save(self, folder: Path) -> None:
        """Weights and optimizer state."""
        save_weights(self._model.module, folder / "weights.safetensors")
        self._stepper.save(folder)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        load_weights(self._model.module, folder / "weights.safetensors")
        self._stepper.load(folder)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
        save_model(self._model.module, self._tokenizer, folder)

    def _mini_batches(self, batch: Batch) -> Iterator[list[int]]:
        """Shuffled mini-batches; the order is a function of (seed, step, epoch), so a resumed run repeats it."""
        size = self._mini_batch or len(batch)
        for epoch in range(self._epochs):
            rows = np.random.default_rng([self._seed, batch.step, epoch]).permutation(len(batch)).tolist()
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def _backward(self, batch: Batch, advantages_BT: Tensor, rows: list[int]) -> Iterator[tuple[float, SurrogateStats]]:
        tokens = float(batch.response_lengths_B[rows].sum())
        denominator = tokens if self._aggregate == "token_mean" else float(len(rows))
        for micro in self._model.micro_batches(batch, rows):
            logprobs_bt, _ = self._model.score(micro, temperature=self._temperature)
            loss, stats = clipped_surrogate(
                logprobs_bt,
                micro.take(batch.old_logprobs_BT),
                micro.take(advantages_BT),
                micro.mask_bt,
                clip_low=self._clip_low,
                clip_high=self._clip_high,
                aggregate=self._aggregate,
                denominator=denominator,
            )
            loss.backward()
            yield float(loss.detach()), stats
