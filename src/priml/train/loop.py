"""The algorithm. Everything else in this package is machinery for these lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from priml.batch import Batch
from priml.config.parts import Filter
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.maths.advantages import estimate_advantages
from priml.roles.base import Policy, Prm, ProcessRewards
from priml.rollout.base import Sampler, SamplingSpec
from priml.train.collect import Band, GroupPool
from priml.train.run import Run
from priml.types import Group


@dataclass(frozen=True, slots=True)
class Roles:
    """Who does what in a step."""

    sampler: Sampler
    verify: Callable[[Sequence[Group]], list[Group]]
    collate: Callable[[Sequence[Group], int], Batch]
    """Kept groups and the step number -> one batch."""
    policy: Policy
    prm: Prm


def train(roles: Roles, stream: ProblemStream, cfg: TrainConfig, run: Run) -> None:
    """PRIME: online RL in which the process reward model learns from outcomes alone."""
    for step in run.steps():
        pool = new_pool(cfg)
        while not pool.is_full:
            prompts = stream.take(pool.next_draw)
            groups = roles.sampler.sample(prompts, sampling(cfg, step))  # sample
            pool.add(roles.verify(groups))  # verify, filter
        stream.put_back(pool.surplus)
        batch = roles.policy.recall(roles.collate(pool.kept, step))

        prm_report = roles.prm.update(batch)  # update PRM
        process = roles.prm.rewards(batch)  # implicit rewards
        advantages_BT = advantages(batch, process, cfg)
        policy_report = roles.policy.update(batch, advantages_BT)  # update policy
        roles.sampler.load(roles.policy.weights(), version=step)  # sync weights

        run.record(pool, batch, process, advantages_BT, prm_report, policy_report)  # metrics; evaluation, checkpoint


def new_pool(cfg: TrainConfig) -> GroupPool:
    """An empty pool for one step."""
    chosen = cfg.filter
    return GroupPool(
        wanted=cfg.batch.prompts,
        band=chosen and Band(low=chosen.low, high=chosen.high, drop_truncated=chosen.drop_truncated),
        first_draw=cfg.batch.draw,
        max_rounds=(chosen or Filter()).max_rounds,  # without a filter, undecided groups are still drawn again
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


def advantages(batch: Batch, process: ProcessRewards, cfg: TrainConfig) -> Tensor:
    """The configured estimator, on the whole batch at once: its normalisers are global."""
    chosen = cfg.advantage
    return estimate_advantages(
        batch.outcomes_B,
        process.rewards_BT,
        batch.mask_BT,
        batch.groups_B,
        estimator=chosen.estimator,
        preset=chosen.preset,
        beta=process.beta,
        process_weight=chosen.process_weight,
        outcome_weight=chosen.outcome_weight,
        gamma_process=chosen.gamma_process,
        gamma_outcome=chosen.gamma_outcome,
    )
