"""The trainable roles as the loop sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from priml.batch import Batch
from priml.types import WeightSource, Write


@dataclass(frozen=True, slots=True)
class ProcessRewards:
    """What each response token was paid. CPU, float32, 0 on padding."""

    rewards_BT: Tensor
    """beta * log-ratio, where the granularity puts it."""
    prm_logprobs_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    """Both None without a PRM."""
    beta: float | None = None
    """The reward scale in use; None without a PRM."""
    prm_versions_B: Tensor | None = None
    """Optimizer steps the PRM had taken when it scored each response, int32; None without a PRM."""


@dataclass(frozen=True, slots=True)
class PrmReport:
    """How the PRM did on this step's fresh responses before it learnt from them, and how the update went."""

    beta: float
    accuracy: float
    """Share of responses whose score has the sign of the outcome."""
    pair_accuracy: float
    reward_mean: float
    """Mean score (summed reward) of a response."""
    auc: float | None = None
    """None when all outcomes are alike."""
    length_correlation: float | None = None
    """Correlation of score and length; None when either does not vary."""
    loss: float | None = None
    grad_norm: float | None = None
    """Both None when the PRM is frozen. Means over the optimizer steps."""

    def metrics(self) -> dict[str, float]:
        """Flat metrics, without those that mean nothing."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {f"prm/{name}": value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """How the policy update went; means over the optimizer steps, `ratio_max` over all tokens."""

    loss: float
    grad_norm: float
    entropy: float
    """Mean per token before the update, nats."""
    clip_fraction: float
    kl_old: float
    """k3 estimate of KL(old || new), nats per token."""
    ratio_max: float
    kl_initial: float | None = None
    """k3 estimate of KL(policy || initial policy) before the update, nats per token; None without a KL term."""
    importance_capped: float | None = None
    """Share of tokens whose importance weight was cut to the cap; None without the correction."""

    def metrics(self) -> dict[str, float]:
        """Flat metrics, without those that mean nothing."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {f"policy/{name}": value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class CriticReport:
    """How the critic did on this step's fresh responses before it learnt from them, and how the update went."""

    value_mean: float
    """Mean value of a token."""
    loss: float
    grad_norm: float
    """Both means over the optimizer steps."""
    explained_variance: float | None = None
    """Share of the variance of returns that the values account for: 1 all, 0 none; None when returns do not vary."""

    def metrics(self) -> dict[str, float]:
        """Flat metrics, without those that mean nothing."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {f"critic/{name}": value for name, value in values.items() if value is not None}


class Policy(Protocol):
    """The model being trained."""

    def score(self, batch: Batch) -> Batch:
        """The batch with the log-probs of the policy as it is now, before its update."""
        ...

    def update(self, batch: Batch, advantages_BT: Tensor) -> PolicyReport:
        """One pass of clipped policy-gradient steps over the batch."""
        ...

    def weights(self) -> WeightSource:
        """A handle on the newest weights, for the sampler."""
        ...

    def digest(self) -> str:
        """sha256 of the weights."""
        ...

    def stage(self, folder: Path) -> Sequence[Write]:
        """Copy everything that a resumed run needs to host memory; what is returned writes it there, file by file."""
        ...

    def load(self, folder: Path) -> None:
        """Restore it."""
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
        ...


class Prm(Protocol):
    """The process reward model, or its absence."""

    def update(self, batch: Batch) -> PrmReport | None:
        """Learn from the batch's outcomes."""
        ...

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Token rewards of the batch, after `update` has seen it."""
        ...

    def digest(self) -> str | None:
        """sha256 of the weights; None without a PRM."""
        ...

    def stage(self, folder: Path) -> Sequence[Write]:
        """Copy everything that a resumed run needs to host memory; what is returned writes it there, file by file."""
        ...

    def load(self, folder: Path) -> None:
        """Restore it."""
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, if there is a model."""
        ...


class Critic(Protocol):
    """The value model of PPO, or its absence."""

    def estimate_values(self, batch: Batch) -> Batch:
        """The batch with the critic's values as they are now, before its update."""
        ...

    def update(self, batch: Batch, returns_BT: Tensor | None) -> CriticReport | None:
        """Learn to predict the returns; None without a critic, as are the returns."""
        ...

    def digest(self) -> str | None:
        """sha256 of the weights; None without a critic."""
        ...

    def stage(self, folder: Path) -> Sequence[Write]:
        """Copy everything that a resumed run needs to host memory; what is returned writes it there, file by file."""
        ...

    def load(self, folder: Path) -> None:
        """Restore it."""
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, if there is a model."""
        ...


class NoCritic:
    """Every estimator but PPO does without values."""

    def estimate_values(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch

    def update(self, batch: Batch, returns_BT: Tensor | None) -> None:
        """Nothing to learn."""

    def digest(self) -> None:
        """There are no weights."""

    def stage(self, folder: Path) -> Sequence[Write]:
        """Nothing to write."""
        return []

    def load(self, folder: Path) -> None:
        """Nothing to load."""

    def export(self, folder: Path) -> None:
        """Nothing to export."""
