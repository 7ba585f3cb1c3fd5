"""Policy losses that bound how far one batch may move the policy, PPO's value loss, and KL divergences from samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from priml.maths.masking import masked_mean, masked_sum
from priml.names import AggregateName, ImportanceLevel, KlEstimatorName, SurrogateName


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far the ratio of new to old probability may go."""

    low: float
    """Clipped from below at 1 - low."""
    high: float
    """Clipped from above at 1 + high."""
    dual: float | None = None
    """Above 1: a token with a negative advantage loses at most this many times it."""


Surrogate = Callable[[Tensor, Tensor, Tensor, Tensor, Bounds], tuple[Tensor, Tensor]]
"""`surrogate(logprobs_BT, log_ratio_BT, advantages_BT, mask_BT, bounds) -> (loss_BT, bounded_BT)`.

`log_ratio_BT` is `log pi_new - log pi_old`. `loss_BT` is the loss of each token, and `bounded_BT` is True where a bound
acted on its gradient. Inputs are 0 on padding; what stands there in the results is ignored.
"""


@dataclass(frozen=True, slots=True)
class SurrogateStats:
    """How far the policy has moved from the one that sampled, as detached sums: micro-batches add with `+`."""

    tokens: Tensor
    """Number of valid tokens."""
    clipped: Tensor
    """Number of tokens where the bound acted: no gradient flows, or with `cispo` one of bounded weight."""
    kl_k1_sum: Tensor
    """Sum of the k1 estimates of KL(old || new)."""
    kl_k3_sum: Tensor
    """Sum of the k3 estimates of KL(old || new)."""
    ratio_max: Tensor
    """Largest probability ratio new / old; 0 without tokens."""

    def __add__(self, other: SurrogateStats) -> SurrogateStats:
        return SurrogateStats(
            tokens=self.tokens + other.tokens,
            clipped=self.clipped + other.clipped,
            kl_k1_sum=self.kl_k1_sum + other.kl_k1_sum,
            kl_k3_sum=self.kl_k3_sum + other.kl_k3_sum,
            ratio_max=torch.maximum(self.ratio_max, other.ratio_max),
        )

    @property
    def clip_fraction(self) -> Tensor:
        """Share of tokens that were clipped."""
        return self.clipped / self.tokens.clamp_min(1)

    @property
    def kl_k1(self) -> Tensor:
        """Mean k1 estimate of KL(old || new) per token: unbiased, may be negative."""
        return self.kl_k1_sum / self.tokens.clamp_min(1)

    @property
    def kl_k3(self) -> Tensor:
        """Mean k3 estimate of KL(old || new) per token: unbiased and never negative."""
        return self.kl_k3_sum / self.tokens.clamp_min(1)


def clipped_surrogate(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    aggregate: AggregateName,
    surrogate: SurrogateName | Surrogate = "ppo",
    dual_clip: float | None = None,
    weights_BT: Tensor | None = None,
    denominator: float | None = None,
) -> tuple[Tensor, SurrogateStats]:
    """The loss of PPO, or of another surrogate, on advantages and the ratio new / old probability.

    `surrogate` is a key of `SURROGATES`, or a function like those in it.

    - `ppo`: `max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))`. Two different bounds are DAPO's clip-higher
      (arXiv 2503.14476). With `dual_clip` (arXiv 1912.09729) a token with a negative advantage loses at most
      `-A dual_clip`.
    - `gspo`: the same with one ratio per response, the geometric mean of its tokens' (arXiv 2507.18071, section 4.3).
      These ratios stay far closer to 1; the paper clips at 3e-4 and 4e-4.
    - `cispo`: `-A clip(ratio) log pi`. The clipped ratio is a constant weight, so no token loses its gradient
      (arXiv 2506.13585, where only the upper bound acts: clip_low = 1).

    `weights_BT` (see `importance_weights`) multiply each token's loss. They, old log-probabilities and advantages are
    constants: no gradient flows into them. `aggregate` and `denominator` are those of `aggregate_tokens`.
    """
    logprobs_BT = logprobs_BT.masked_fill(~mask_BT, 0.0)
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT.detach(), mask_BT)
    advantages_BT = advantages_BT.detach().masked_fill(~mask_BT, 0.0)
    bounds = Bounds(low=clip_low, high=clip_high, dual=dual_clip)
    function = surrogate if callable(surrogate) else SURROGATES[surrogate]
    loss_BT, bounded_BT = function(logprobs_BT, log_ratio_BT, advantages_BT, mask_BT, bounds)
    if weights_BT is not None:
        loss_BT = weights_BT.detach().masked_fill(~mask_BT, 0.0) * loss_BT
    loss = aggregate_tokens(loss_BT, mask_BT, aggregate, denominator=denominator)

    old_to_new_BT = -log_ratio_BT.detach()
    ratio_BT = log_ratio_BT.detach().exp()
    stats = SurrogateStats(
        tokens=mask_BT.sum(),
        clipped=(bounded_BT & mask_BT).sum().to(ratio_BT.dtype),
        kl_k1_sum=masked_sum(old_to_new_BT, mask_BT),
        kl_k3_sum=masked_sum(_k3(old_to_new_BT), mask_BT),
        ratio_max=ratio_BT.masked_fill(~mask_BT, 0.0).max() if len(mask_BT) else ratio_BT.sum(),
    )
    return loss, stats


def importance_weights(
    old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, *, level: ImportanceLevel, cap: float
) -> Tensor:
    """`min(cap, trainer probability / sampler probability)` of each token, 0 on padding: truncated importance sampling.

    Two engines with the same weights compute different log-probabilities, so samples of one are slightly off-policy for
    the other. The weights correct the expectation; the bound keeps the variance finite, and has a bias (Ionides 2008;
    for sampling engines: "Your efficient RL framework secretly brings you off-policy RL training", Yao et al. 2025).
    `level` `sequence`: the ratio of the whole response, the product of its tokens'. Weights have no gradient.
    """
    log_ratio_BT = _log_ratio(old_logprobs_BT.detach(), sampler_logprobs_BT.detach(), mask_BT)
    if level == "sequence":
        log_ratio_BT = masked_sum(log_ratio_BT, mask_BT, dim=1)[:, None].expand_as(log_ratio_BT)
    # The bound is taken before the exponential, where nothing can overflow.
    return log_ratio_BT.clamp(max=math.log(cap)).exp().masked_fill(~mask_BT, 0.0)


def aggregate_tokens(
    x_BT: Tensor, mask_BT: Tensor, aggregate: AggregateName, *, denominator: float | None = None
) -> Tensor:
    """One number of a loss per token.

    - `token_mean` averages over all tokens, so long responses weigh more.
    - `sequence_mean` averages each response over its tokens (0 without any), then over responses. The published
      programs do this with one response per micro-batch.
    - `constant_length` divides the sum by responses x one fixed length, so a token weighs the same in any response and
      batch (Dr. GRPO, arXiv 2503.20783). It needs `denominator`.

    `denominator`: valid tokens, responses, or responses x fixed length of the whole batch, if these rows are a part.
    """
    if aggregate == "sequence_mean":
        total, count = masked_mean(x_BT, mask_BT, dim=1).sum(), mask_BT.shape[0]
    elif aggregate in ("token_mean", "constant_length"):
        total, count = masked_sum(x_BT, mask_BT), mask_BT.sum()
    else:
        raise ValueError(f"aggregate={aggregate!r}: need 'constant_length', 'token_mean' or 'sequence_mean'")
    if denominator is not None:
        count = denominator
    elif aggregate == "constant_length":
        raise ValueError("aggregate='constant_length' needs its denominator: responses x the fixed length")
    return total / (count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1))


def clipped_value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    denominator: float | None = None,
) -> Tensor:
    """`0.5 max((V - R)^2, (V_clipped - R)^2)`, mean over tokens; `V_clipped` stays within `clip` of the old value.

    `denominator`: number of valid tokens in the whole batch, when these rows are only a part of it.
    """
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    old_values_BT = old_values_BT.detach().masked_fill(~mask_BT, 0.0)
    returns_BT = returns_BT.detach().masked_fill(~mask_BT, 0.0)
    bounded_BT = torch.clamp(values_BT, old_values_BT - clip, old_values_BT + clip)
    worse_BT = torch.maximum((values_BT - returns_BT).square(), (bounded_BT - returns_BT).square())
    return 0.5 * aggregate_tokens(worse_BT, mask_BT, "token_mean", denominator=denominator)


def kl_penalty(
    logprobs_BT: Tensor, initial_logprobs_BT: Tensor, mask_BT: Tensor, *, estimator: KlEstimatorName
) -> Tensor:
    """KL(policy || initial policy) per token as a loss: the value is the estimator's, the gradient pulls back.

    - `k1`: the unbiased value of k1, with the gradient of k2. Its own, `grad log pi`, is zero on average: noise.
    - `k2`: its gradient is that of KL(policy || initial).
    - `k3` (GRPO's): its gradient is that of KL(initial || policy), which has the same minimum.

    Exact for tokens sampled from the policy itself, so only until the first optimizer step on a batch. The initial
    log-probabilities are constants.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, initial_logprobs_BT.detach(), mask_BT)
    if estimator == "k1":
        k2_BT = log_ratio_BT.square() / 2
        return log_ratio_BT.detach() + k2_BT - k2_BT.detach()
    return KL_ESTIMATORS[estimator](logprobs_BT, initial_logprobs_BT.detach(), mask_BT)


def kl_k1(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`log p - log q` per token: KL(p || q) without bias for tokens sampled from p, but noisy and of either sign."""
    return _log_ratio(logprobs_BT, other_logprobs_BT, mask_BT)


def kl_k2(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`(log p - log q)^2 / 2` per token: biased, never negative; its *gradient* is that of KL(p || q)."""
    return _log_ratio(logprobs_BT, other_logprobs_BT, mask_BT).square() / 2


def kl_k3(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`q/p - 1 - log(q/p)` per token: KL(p || q) without bias for tokens sampled from p, never negative."""
    return _k3(_log_ratio(logprobs_BT, other_logprobs_BT, mask_BT))


def _ppo(
    logprobs_BT: Tensor, log_ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    return _clipped(log_ratio_BT.exp(), advantages_BT, bounds)


def _gspo(
    logprobs_BT: Tensor, log_ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    sequence_B1 = masked_mean(log_ratio_BT.detach(), mask_BT, dim=1)[:, None]
    # The value is the response's ratio, the gradient that of each token's own log-probability.
    return _clipped((sequence_B1 + logprobs_BT - logprobs_BT.detach()).exp(), advantages_BT, bounds)


def _cispo(
    logprobs_BT: Tensor, log_ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    ratio_BT = log_ratio_BT.detach().exp()
    weight_BT = ratio_BT.clamp(1.0 - bounds.low, 1.0 + bounds.high)
    return -weight_BT * advantages_BT * logprobs_BT, weight_BT != ratio_BT


def _clipped(ratio_BT: Tensor, advantages_BT: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """PPO's loss per token for a given ratio, and where a bound took its gradient away."""
    free_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1.0 - bounds.low, 1.0 + bounds.high)
    loss_BT, bounded_BT = torch.maximum(free_BT, clipped_BT), clipped_BT > free_BT
    if bounds.dual is None:
        return loss_BT, bounded_BT
    most_BT = torch.where(advantages_BT < 0, -advantages_BT * bounds.dual, torch.inf)
    return torch.minimum(loss_BT, most_BT), bounded_BT | (loss_BT > most_BT)


def _k3(log_ratio_BT: Tensor) -> Tensor:
    # expm1 keeps the digits that exp(x) - 1 - x loses for the tiny ratios of a healthy run.
    return torch.expm1(-log_ratio_BT) + log_ratio_BT


def _log_ratio(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return logprobs_BT.masked_fill(~mask_BT, 0.0) - other_logprobs_BT.masked_fill(~mask_BT, 0.0)


KL_ESTIMATORS: dict[KlEstimatorName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}

SURROGATES: dict[str, Surrogate] = {"ppo": _ppo, "gspo": _gspo, "cispo": _cispo}
