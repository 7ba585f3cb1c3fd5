"""The trainable roles as the loop sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor
from typing_extensions import TypeVar

from priml.batch import Batch
from priml.types import Write

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
class Report:
    """What an update reports: numbers under their names. None where a number is undefined."""

    prefix: ClassVar[str]

    def metrics(self) -> dict[str, float]:
        """The defined numbers, as `prefix/name`."""
        values = asdict(self)
        return {f"{self.prefix}/{name}": value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class PrmReport(Report):
    """How well the PRM judged this step's responses before it learnt from them, and how the update went."""

    prefix = "prm"

    accuracy: float
    """Share of responses whose score has the sign of the outcome."""
    reward_mean: float
    """Mean score (summed reward) of a response."""
    pair_accuracy: float | None = None
    """Offline, None when no group has both labels. Online such groups count one half."""
    mixed_groups: float | None = None
    """Online only: groups with right and wrong responses."""
    mixed_accuracy: float | None = None
    """Pair accuracy of those groups alone; None without any."""
    auc: float | None = None
    """None when all outcomes are alike."""
    length_correlation: float | None = None
    """Correlation of score and length; None when either does not vary."""
    loss: float | None = None
    grad_norm: float | None = None
    """Both None when the PRM is frozen. Means over the optimizer steps; the norm is that before clipping."""
    beta: float | None = None
    """Online only: the reward scale in use."""
    lr_scale: float | None = None
    """Offline only: share of the peak learning rate."""
    cross_entropy: float | None = None
    """Offline only: of the scores, whatever the loss."""


@dataclass(frozen=True, slots=True)
class PolicyReport(Report):
    """How the policy update went; means over the optimizer steps, `ratio_max` over all tokens."""

    prefix = "policy"

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


@dataclass(frozen=True, slots=True)
class CriticReport(Report):
    """How well the critic predicted this step's returns before it learnt from them, and how the update went."""

    prefix = "critic"

    value_mean: float
    """Mean value of a token."""
    loss: float
    grad_norm: float
    """Both means over the optimizer steps."""
    explained_variance: float | None = None
    """Share of the variance of returns that the values account for: 1 all, 0 none; None when returns do not vary."""


class Trainable(Protocol):
    """A learner's model on disk."""

    def digest(self) -> str | None:
        """sha256 of the weights; None without a model."""

    def stage(self, folder: Path) -> Sequence[Write]:
        """Copy the state that a resumed run needs to host memory. Returns functions, each of which writes one file."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `stage` wrote."""

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""


# A process without the tensors has references in their place: then a role is a `Policy[BatchRef, TensorRef]`.
BatchT = TypeVar("BatchT", default=Batch)
BatchT_contra = TypeVar("BatchT_contra", contravariant=True, default=Batch)
TensorT_contra = TypeVar("TensorT_contra", contravariant=True, default=Tensor)
ProcessT_co = TypeVar("ProcessT_co", covariant=True, default=ProcessRewards)
WeightsT_co = TypeVar("WeightsT_co", covariant=True, default="PreTrainedModel")


class Policy(Trainable, Protocol[BatchT, TensorT_contra, WeightsT_co]):
    """The model being trained."""

    def score(self, batch: BatchT) -> BatchT:
        """The batch with what is read of the policy as it is now, before its update."""
        ...

    def update(self, batch: BatchT, advantages_BT: TensorT_contra) -> tuple[BatchT, PolicyReport]:
        """Clipped policy-gradient steps over the batch. Returns it with the log-probs of the policy before them."""
        ...

    def weights(self) -> WeightsT_co:
        """The newest weights, for the sampler."""
        ...


class Prm(Trainable, Protocol[BatchT_contra, ProcessT_co]):
    """The process reward model."""

    def update(self, batch: BatchT_contra) -> PrmReport | None:
        """Learn from the batch's outcomes; None if it never learns."""

    def rewards(self, batch: BatchT_contra) -> ProcessT_co:
        """Token rewards of the batch, after `update` has seen it."""
        ...


class Critic(Trainable, Protocol[BatchT, TensorT_contra]):
    """The value model of PPO."""

    def estimate_values(self, batch: BatchT) -> BatchT:
        """The batch with the critic's values as they are now, before its update."""
        ...

    def update(self, batch: BatchT, returns_BT: TensorT_contra | None) -> CriticReport:
        """Learn to predict the returns."""
        ...


class NoModel:
    """A `Trainable` that has no weights and writes no files."""

    def digest(self) -> None:
        """None, as there are no weights."""

    def stage(self, folder: Path) -> Sequence[Write]:
        return []

    def load(self, folder: Path) -> None:
        """Nothing to restore, as nothing was written."""

    def export(self, folder: Path) -> None:
        """Nothing to export, as there are no weights."""
