"""The algorithm. Everything else in this package is machinery for these lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from priml.batch import Batch
from priml.config.algorithm import DropOverlong, PenalizeOverlong
from priml.config.rollout import Filter
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.graders.base import GroupVerifier
from priml.learners.base import Critic, NoCritic, Policy, Prm, ProcessRewards
from priml.maths.advantages import estimate_advantages, overlong_penalty
from priml.rollout.base import Sampler, SamplingSpec
from priml.training.collect import FilterBand, GroupPool
from priml.training.run import Run
from priml.types import Group


@dataclass(frozen=True, slots=True)
class Roles:
    """Who does what in a step."""

    sampler: Sampler
    verify: GroupVerifier
    collate: Callable[[Sequence[Group], int], Batch]
    """Kept groups and the step number -> one batch."""
    policy: Policy
    prm: Prm
    critic: Critic = field(default_factory=NoCritic)
    """Of PPO alone."""


def train(roles: Roles, stream: ProblemStream, cfg: TrainConfig, run: Run) -> None:
    """PRIME: online RL in which the process reward model learns from outcomes alone."""
    for step in run.steps():
        pool = new_pool(cfg)
        while not pool.is_full:
            prompts = stream.take(pool.next_draw)
            groups = roles.sampler.sample(prompts, sampling(cfg, step), roles.verify.submit)  # sample; verify what ends
            pool.add(roles.verify(groups))  # verify the rest; filter
        stream.put_back(pool.surplus)
        batch = roles.critic.estimate_values(roles.policy.score(roles.collate(pool.kept, step)))

        prm_report = roles.prm.update(batch)  # update PRM
        process = roles.prm.rewards(batch)  # implicit rewards
        process_weight = cfg.advantage.process_weight_at(step) * run.process_factor
        advantages_BT, returns_BT = advantages(batch, process, cfg, process_weight)
        critic_report = roles.critic.update(batch, returns_BT)  # update critic, with PPO
        policy_report = roles.policy.update(batch, advantages_BT)  # update policy
        roles.sampler.load(roles.policy.weights(), version=step)  # sync weights

        # Metrics; evaluation and checkpoint when they are due.
        run.record(pool, batch, process, advantages_BT, prm_report, policy_report, critic_report)


def new_pool(cfg: TrainConfig) -> GroupPool:
    """An empty pool for one step."""
    chosen = cfg.filter or Filter(low=0.0, high=1.0)  # without a filter, undecided groups are still drawn again
    return GroupPool(
        wanted=cfg.batch.prompts,
        band=FilterBand(low=chosen.low, high=chosen.high, drop_truncated=isinstance(cfg.overlong, DropOverlong)),
        first_draw=cfg.batch.draw,
        max_rounds=chosen.max_rounds,
    )


def sampling(cfg: TrainConfig, step: int) -> SamplingSpec:
    """How this step samples."""
    return SamplingSpec(
        group_size=cfg.sampling.group_size,
        temperature=cfg.sampling.temperature,
        max_new_tokens=cfg.sampling.max_new_tokens,
        seed=cfg.seed,
        step=step,
    )


def advantages(
    batch: Batch, process: ProcessRewards, cfg: TrainConfig, process_weight: float
) -> tuple[Tensor, Tensor | None]:
    """The configured estimator, on the whole batch at once, for its normalisers are global; and the returns that a
    critic, if there is one, is to learn."""
    chosen = cfg.advantage
    estimate = partial(
        estimate_advantages,
        outcomes(batch, cfg),
        process.rewards_BT,
        batch.mask_BT,
        batch.groups_B,
        estimator=chosen.estimator,
        preset=chosen.preset,
        beta=process.beta,
        process_weight=process_weight,
        outcome_weight=chosen.outcome_weight,
        gamma_process=chosen.gamma_process,
        gamma_outcome=chosen.gamma_outcome,
        gae_lambda=cfg.critic and cfg.critic.gae_lambda,
        values_BT=batch.values_BT,
    )
    return estimate(), None if batch.values_BT is None else estimate(whiten=False) + batch.values_BT


def outcomes(batch: Batch, cfg: TrainConfig) -> Tensor:
    """What each response is paid as a whole."""
    if not isinstance(cfg.overlong, PenalizeOverlong):
        return batch.outcomes_B
    limit, window = cfg.sampling.max_new_tokens, cfg.overlong.window
    return batch.outcomes_B + overlong_penalty(batch.response_lengths_B, limit=limit, window=window)
