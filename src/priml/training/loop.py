"""The algorithm. Everything else in this package is machinery for these lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from priml.batch import Batch
from priml.learners.base import Critic, Policy, Prm
from priml.training.advantages import AdvantageEstimator
from priml.training.collectors import Collector
from priml.training.online_run import OnlineRun
from priml.training.records import FinishedStep
from priml.types import Group


@dataclass(frozen=True, slots=True)
class Roles:
    """The parts of a training step."""

    collector: Collector
    """Samples prompts, verifies the responses and filters the groups."""
    collate: Callable[[Sequence[Group], int], Batch]
    """(kept groups, step number) -> one batch."""
    policy: Policy
    prm: Prm | None
    """None: outcomes are the only rewards."""
    advantages: AdvantageEstimator
    critic: Critic | None = None
    """Only PPO has one."""


def train(roles: Roles, run: OnlineRun) -> None:
    """PRIME: online RL in which the process reward model learns from outcomes alone."""
    for step in run.steps():
        pool = roles.collector.collect(step)  # sample; verify; filter
        batch = roles.collate(pool.kept, step)
        batch = roles.policy.score(batch)  # what is read of it before its update
        batch = roles.critic.estimate_values(batch) if roles.critic else batch

        prm_report = roles.prm.update(batch) if roles.prm else None  # update PRM
        process = roles.prm.rewards(batch) if roles.prm else None  # implicit rewards
        advantages = roles.advantages.estimate(batch, process, run.process_factor(prm_report))
        critic_report = roles.critic.update(batch, advantages.returns_BT) if roles.critic else None  # with PPO
        batch, policy_report = roles.policy.update(batch, advantages.advantages_BT)  # update policy
        roles.collector.sync(roles.policy.weights(), version=step)  # sync weights

        # Metrics; evaluation and checkpoint when they are due.
        run.record(
            FinishedStep(step, pool.groups, batch, process, advantages.advantages_BT),
            prm_report,
            policy_report,
            critic_report,
        )
