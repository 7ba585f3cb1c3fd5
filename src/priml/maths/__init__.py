"""The paper as pure functions on tensors. Nothing here knows models, settings, batches or devices."""

from priml.maths.advantages import (
    ESTIMATORS,
    AdvantageInputs,
    Estimator,
    batch_norm,
    estimate_advantages,
    gae,
    group_normalised,
    leave_one_out,
    overlong_penalty,
    process_returns,
)
from priml.maths.implicit import implicit_rewards, prefix_q, step_rewards, whole_response_reward
from priml.maths.logprobs import token_logprobs
from priml.maths.masking import discounted_suffix_sum, masked_mean, masked_sum, whiten
from priml.maths.policy_loss import (
    KL_ESTIMATORS,
    SURROGATES,
    Bounds,
    Surrogate,
    SurrogateStats,
    aggregate_tokens,
    clipped_surrogate,
    clipped_value_loss,
    importance_weights,
    kl_penalty,
)
from priml.maths.presets import PRESETS, Preset
from priml.maths.prm_loss import detached_dpo, kto, nca, outcome_cross_entropy, pairwise_dpo, sequence_scores

__all__ = [
    "ESTIMATORS",
    "KL_ESTIMATORS",
    "PRESETS",
    "SURROGATES",
    "AdvantageInputs",
    "Bounds",
    "Estimator",
    "Preset",
    "Surrogate",
    "SurrogateStats",
    "aggregate_tokens",
    "batch_norm",
    "clipped_surrogate",
    "clipped_value_loss",
    "detached_dpo",
    "discounted_suffix_sum",
    "estimate_advantages",
    "gae",
    "group_normalised",
    "implicit_rewards",
    "importance_weights",
    "kl_penalty",
    "kto",
    "leave_one_out",
    "masked_mean",
    "masked_sum",
    "nca",
    "outcome_cross_entropy",
    "overlong_penalty",
    "pairwise_dpo",
    "prefix_q",
    "process_returns",
    "sequence_scores",
    "step_rewards",
    "token_logprobs",
    "whiten",
    "whole_response_reward",
]
