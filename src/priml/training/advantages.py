"""Advantage estimation as a role of the training loop: the settings are bound once, at construction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import TypeVar

from priml.batch import Batch
from priml.learners.base import BatchT_contra, ProcessRewards
from priml.maths.advantages import Estimator, estimate_advantages, overlong_penalty
from priml.maths.presets import Preset


@dataclass(frozen=True, slots=True)
class Advantages:
    """What the models learn from. CPU, float32, 0 on padding."""

    advantages_BT: Tensor
    """For the policy."""
    returns_BT: Tensor | None
    """For the critic; None without one."""


ProcessT_contra = TypeVar("ProcessT_contra", contravariant=True, default=ProcessRewards)
AdvantagesT_co = TypeVar("AdvantagesT_co", covariant=True, default=Advantages)


class AdvantageEstimator(Protocol[BatchT_contra, ProcessT_contra, AdvantagesT_co]):
    """From outcomes and process rewards to advantages."""

    def estimate(self, batch: BatchT_contra, process: ProcessT_contra | None, process_factor: float) -> AdvantagesT_co:
        """Advantages of a whole batch, because the normalisers are global.

        `process` is None without a PRM. `process_factor` multiplies the weight of the process reward in this step.
        """
        ...


@dataclass(frozen=True, slots=True)
class OverlongPenalty:
    """The soft penalty on long responses (DAPO): none up to `limit - window` tokens, 1 at `limit`."""

    limit: int
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAdvantages:
    """The `AdvantageEstimator` in this process. The arguments are those of `maths.advantages.estimate_advantages`."""

    estimator: str | Estimator
    preset: str | Preset
    process_weight_at: Callable[[int], float] = lambda step: 1.0
    """Weight of the process reward in a step, counted from 1."""
    outcome_weight: float = 1.0
    gamma_process: float | None = None
    gamma_outcome: float | None = None
    gae_lambda: float | None = None
    overlong: OverlongPenalty | None = None

    def estimate(self, batch: Batch, process: ProcessRewards | None, process_factor: float) -> Advantages:
        rewards_BT = torch.zeros(1, 1).expand(batch.mask_BT.shape) if process is None else process.rewards_BT
        estimate = partial(
            estimate_advantages,
            self._outcomes(batch),
            rewards_BT if batch.turn_rewards_BT is None else rewards_BT + batch.turn_rewards_BT,
            batch.mask_BT,
            batch.groups_B,
            estimator=self.estimator,
            preset=self.preset,
            beta=None if process is None else process.beta,
            process_weight=self.process_weight_at(batch.step) * process_factor,
            outcome_weight=self.outcome_weight,
            gamma_process=self.gamma_process,
            gamma_outcome=self.gamma_outcome,
            gae_lambda=self.gae_lambda,
            values_BT=batch.values_BT,
        )
        advantages_BT = estimate()
        returns_BT = None if batch.values_BT is None else estimate(whiten=False) + batch.values_BT
        return Advantages(advantages_BT, returns_BT)

    def _outcomes(self, batch: Batch) -> Tensor:
        if self.overlong is None:
            return batch.outcomes_B
        penalty_B = overlong_penalty(batch.response_lengths_B, limit=self.overlong.limit, window=self.overlong.window)
        return batch.outcomes_B + penalty_B
