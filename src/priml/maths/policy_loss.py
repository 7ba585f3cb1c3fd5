"""The clipped policy and value losses of PPO, and estimates of the KL divergence from samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from priml.maths.masking import masked_mean, masked_sum

Aggregate = Literal["token_mean", "sequence_mean"]


@dataclass(frozen=True, slots=True)
class SurrogateStats:
    """How far the policy has moved from the one that sampled, as detached sums: micro-batches add with `+`."""

    tokens: Tensor
    """Number of valid tokens."""
    clipped: Tensor
    """Number of tokens where the clipped term was the larger loss, so that no gradient flows."""
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
    aggregate: Aggregate,
    denominator: float | None = None,
) -> tuple[Tensor, SurrogateStats]:
    """PPO's loss: `max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))`, the ratio being new / old probability.

    Old log-probabilities and advantages are constants: no gradient flows into them.

    `aggregate`: `token_mean` averages over all tokens, so long responses weigh more; `sequence_mean` averages each
    response over its tokens and then over responses (what the published programs amount to with one response per
    micro-batch). A response without valid tokens counts 0 among the responses.
    `denominator`: number of valid tokens, or of responses, in the whole batch, when these rows are only a part of it.
    """
    log_ratio_BT = _log_ratio(logprobs_BT, old_logprobs_BT.detach(), mask_BT)
    advantages_BT = advantages_BT.detach().masked_fill(~mask_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()
    free_BT = -advantages_BT * ratio_BT
    bounded_BT = -advantages_BT * ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = _aggregate(torch.maximum(free_BT, bounded_BT), mask_BT, aggregate, denominator)

    old_to_new_BT = -log_ratio_BT.detach()
    stats = SurrogateStats(
        tokens=mask_BT.sum(),
        clipped=((bounded_BT > free_BT) & mask_BT).sum().to(ratio_BT.dtype),
        kl_k1_sum=masked_sum(old_to_new_BT, mask_BT),
        kl_k3_sum=masked_sum(_k3(old_to_new_BT), mask_BT),
        ratio_max=ratio_BT.detach().masked_fill(~mask_BT, 0.0).max(),
    )
    return loss, stats


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
    return 0.5 * _aggregate(worse_BT, mask_BT, "token_mean", denominator)


def kl_k1(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`log p - log q` per token: KL(p || q) without bias for tokens sampled from p, but noisy and of either sign."""
    return _log_ratio(logprobs_BT, other_logprobs_BT, mask_BT)


def kl_k2(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`(log p - log q)^2 / 2` per token: biased, never negative; its *gradient* is that of KL(p || q)."""
    return _log_ratio(logprobs_BT, other_logprobs_BT, mask_BT).square() / 2


def kl_k3(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`q/p - 1 - log(q/p)` per token: KL(p || q) without bias for tokens sampled from p, never negative."""
    return _k3(_log_ratio(logprobs_BT, other_logprobs_BT, mask_BT))


def _k3(log_ratio_BT: Tensor) -> Tensor:
    # expm1 keeps the digits that exp(x) - 1 - x loses for the tiny ratios of a healthy run.
    return torch.expm1(-log_ratio_BT) + log_ratio_BT


def _log_ratio(logprobs_BT: Tensor, other_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return logprobs_BT.masked_fill(~mask_BT, 0.0) - other_logprobs_BT.masked_fill(~mask_BT, 0.0)


def _aggregate(loss_BT: Tensor, mask_BT: Tensor, aggregate: Aggregate, denominator: float | None) -> Tensor:
    if aggregate == "token_mean":
        total, count = masked_sum(loss_BT, mask_BT), mask_BT.sum()
    elif aggregate == "sequence_mean":
        total, count = masked_mean(loss_BT, mask_BT, dim=1).sum(), mask_BT.shape[0]
    else:
        raise ValueError(f"aggregate={aggregate!r}: need 'token_mean' or 'sequence_mean'")
    if denominator is not None:
        count = denominator
    return total / (count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1))


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
