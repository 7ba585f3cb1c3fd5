"""The critic of PPO: a value before each token, learnt from the returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from priml.batch import Batch
from priml.learners.base import CriticReport
from priml.learners.engine import Trained, ValueEngine
from priml.learners.optimizer import attach_batch_on_error, shuffled_mini_batches
from priml.maths.masking import masked_mean
from priml.maths.policy_loss import clipped_value_loss
from priml.models.forward import MicroBatch


@dataclass(eq=False, kw_only=True)
class LocalCritic(Trained[ValueEngine]):
    """A `Critic` around an engine."""

    clip: float
    """Bound of the change of a value in one update."""
    mini_batch: int | None
    epochs: int
    seed: int

    def estimate_values(self, batch: Batch) -> Batch:
        return replace(batch, values_BT=self.engine.scores(batch))

    def update(self, batch: Batch, returns_BT: Tensor | None) -> CriticReport:
        """One optimizer step per mini-batch, `epochs` times over the batch.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        assert batch.values_BT is not None, "estimate_values the batch first"
        assert returns_BT is not None, "a critic learns from returns"
        steps: list[tuple[float, float]] = []
        mini_batches = shuffled_mini_batches(
            range(len(batch)), self.mini_batch, epochs=self.epochs, seed=self.seed, step=batch.step
        )
        with attach_batch_on_error(batch, returns=returns_BT):
            for rows in mini_batches:
                steps.append(self._learn(batch, batch.values_BT, returns_BT, rows))
        return CriticReport(
            value_mean=float(masked_mean(batch.values_BT, batch.mask_BT)),
            loss=sum(loss for loss, _ in steps) / len(steps),
            grad_norm=sum(norm for _, norm in steps) / len(steps),
            explained_variance=_explained_variance(batch.values_BT, returns_BT, batch.mask_BT),
        )

    def _learn(self, batch: Batch, old_BT: Tensor, returns_BT: Tensor, rows: list[int]) -> tuple[float, float]:
        tokens = float(batch.response_lengths_B[rows].sum())

        def value_loss(micro: MicroBatch, values_bt: Tensor) -> Tensor:
            return clipped_value_loss(
                values_bt,
                micro.take(old_BT),
                micro.take(returns_BT),
                micro.mask_bt,
                clip=self.clip,
                denominator=tokens,
            )

        loss = self.engine.accumulate(batch, rows, value_loss)
        return loss, self.engine.step(loss)


def _explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float | None:
    returns_N, values_N = returns_BT[mask_BT], values_BT[mask_BT]
    spread = float(returns_N.var(correction=0))
    return None if spread == 0.0 else 1.0 - float((returns_N - values_N).var(correction=0)) / spread
