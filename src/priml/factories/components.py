"""The roles of a training run: objects of this process, or stand-ins for Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from priml.graders.base import Verifier
from priml.graders.pool import THREADS
from priml.learners.base import Critic, Policy, Prm
from priml.learners.policy import LocalPolicy
from priml.learners.prm import ImplicitPrm
from priml.rollout.base import Sampler
from priml.training.advantages import AdvantageEstimator
from priml.training.records import Records
from priml.training.timing import Clock


def _nothing() -> None:
    """There are no processes to end."""


def _no_idle(elapsed_s: float) -> dict[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Components:
    """The roles of a run, in this process or elsewhere."""

    policy: Policy
    prm: Prm | None
    critic: Critic | None
    advantages: AdvantageEstimator
    sampler: Sampler
    verifier: Verifier
    records: Records
    isolation: tuple[str, ...]
    """The isolation levels in which programs of responses run."""
    digests: Mapping[str, str]
    """sha256 of the initial weights by role."""
    device: Mapping[str, str]
    """What the roles compute on, for the manifest."""
    threads: int = THREADS
    """Responses that the verifier grades at once."""
    idle: Callable[[float], dict[str, float]] = field(default=_no_idle)
    """Metrics: the idle share of each pool of processes over the last so many seconds."""
    close: Callable[[], None] = field(default=_nothing)
    """End the processes."""

    def timed_policy(self, clock: Clock) -> Policy:
        """The policy on the clock; its initial weights, if there are any here, as `reference`."""
        if isinstance(self.policy, LocalPolicy) and self.policy.initial is not None:
            self.policy.initial = clock.wrap(self.policy.initial, "reference", {"scores": "reference"})
        return clock.wrap(self.policy, "policy", {"score": "policy", "update": "policy"})

    def timed_critic(self, clock: Clock) -> Critic | None:
        """The critic on the clock, if there is one."""
        if self.critic is None:
            return None
        return clock.wrap(self.critic, "critic", {"estimate_values": "critic", "update": "critic"})

    def timed_prm(self, clock: Clock) -> Prm | None:
        """The PRM on the clock; its reference, if there is one here, apart from it."""
        if self.prm is None:
            return None
        if isinstance(self.prm, ImplicitPrm):
            self.prm.reference = clock.wrap(self.prm.reference, "reference", {"logprobs": "reference"})
        return clock.wrap(self.prm, "prm", {"update": "prm", "rewards": "prm"})
