"""From the settings of the algorithm to what the training loop needs of them, users' functions included."""

from __future__ import annotations

from priml.config.algorithm import DropOverlong, PenalizeOverlong
from priml.config.rollout import Filter
from priml.config.train import TrainConfig
from priml.maths.advantages import ESTIMATORS, Estimator
from priml.maths.custom import check_estimator, check_surrogate
from priml.maths.policy_loss import SURROGATES, Surrogate
from priml.plugins import load, naming_failures
from priml.rollout.base import SamplingSpec
from priml.training.advantages import LocalAdvantages, OverlongPenalty
from priml.training.collect import CollectSpec, FilterBand


def build_collect_spec(cfg: TrainConfig) -> CollectSpec:
    """How each step samples and filters."""
    chosen = cfg.filter or Filter(low=0.0, high=1.0)  # without a filter, undecided groups are still drawn again
    return CollectSpec(
        sampling=SamplingSpec(
            group_size=cfg.sampling.group_size,
            temperature=cfg.sampling.temperature,
            max_new_tokens=cfg.sampling.max_new_tokens,
            seed=cfg.seed,
            step=0,
        ),
        prompts=cfg.batch.prompts,
        first_draw=cfg.batch.draw,
        band=FilterBand(low=chosen.low, high=chosen.high, drop_truncated=isinstance(cfg.overlong, DropOverlong)),
        max_rounds=chosen.max_rounds,
    )


def build_estimator(name: str) -> Estimator:
    """The advantage estimator of this name, or the user's function."""
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    function = load(name, setting="advantage.estimator", takes=("inputs", "preset"))
    label = f"advantage.estimator: {name}"
    return check_estimator(naming_failures(label)(function), name=label)


def build_surrogate(name: str) -> Surrogate:
    """The surrogate of this name, or the user's function."""
    if name in SURROGATES:
        return SURROGATES[name]
    arguments = ("logprobs_BT", "log_ratio_BT", "advantages_BT", "mask_BT", "bounds")
    function = load(name, setting="loss.surrogate", takes=arguments)
    label = f"loss.surrogate: {name}"
    return check_surrogate(naming_failures(label)(function), name=label)


def build_advantages(cfg: TrainConfig) -> LocalAdvantages:
    """The estimator of the settings."""
    chosen = cfg.advantage
    overlong = None
    if isinstance(cfg.overlong, PenalizeOverlong):
        overlong = OverlongPenalty(limit=cfg.sampling.max_new_tokens, window=cfg.overlong.window)
    return LocalAdvantages(
        estimator=build_estimator(chosen.estimator),
        preset=chosen.preset,
        process_weight_at=chosen.process_weight_at,
        outcome_weight=chosen.outcome_weight,
        gamma_process=chosen.gamma_process,
        gamma_outcome=chosen.gamma_outcome,
        gae_lambda=cfg.critic.gae_lambda if cfg.critic else None,
        overlong=overlong,
    )
