"""Advantages: how much better than expected each token was, from outcomes and process rewards together.

Most estimators have one shape (paper, section 3.2): the process part of a token is the discounted sum, from that token
on, of process rewards less a baseline; the outcome part is the outcome less a baseline. They differ in the baseline.

All statistics (the largest return, the whitening moments) are taken over the rows given: give the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from priml.maths import masking
from priml.maths.implicit import prefix_q
from priml.maths.masking import (
    discounted_suffix_sum,
    group_max,
    group_mean,
    group_size,
    group_sum,
    last_token,
    masked_mean,
)
from priml.maths.presets import PRESETS, LooForm, Preset

GROUP_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """What an estimator is given of a batch."""

    outcomes_B: Tensor
    """What each response was paid as a whole."""
    rewards_BT: Tensor
    """Process rewards as they came, `beta * log-ratio`."""
    scores_BT: Tensor
    """The same in the arithmetic of the preset: its scale, last-token rule and normaliser. 0 on padding."""
    mask_BT: Tensor
    groups_B: Tensor
    values_BT: Tensor | None
    """The critic's, where there is one."""


Estimator = Callable[[AdvantageInputs, Preset], Tensor]
"""`estimate(inputs, preset) -> advantages_BT`: the advantage of each token, 0 on padding, before whitening."""


def estimate_advantages(
    outcomes_B: Tensor,
    rewards_BT: Tensor,
    mask_BT: Tensor,
    groups_B: Tensor,
    *,
    estimator: str | Estimator,
    preset: str | Preset,
    beta: float | None = None,
    gamma_process: float | None = None,
    gamma_outcome: float | None = None,
    process_weight: float = 1.0,
    outcome_weight: float = 1.0,
    gae_lambda: float | None = None,
    whiten: bool | None = None,
    values_BT: Tensor | None = None,
) -> Tensor:
    """Advantage of each valid token of a whole batch, 0 on padding.

    With process rewards all zero this is the outcome-only form of the estimator, to the last bit.

    Args:
        outcomes_B: The verifier's outcome in [0, 1], less a penalty if any.
        rewards_BT: Implicit process rewards, `beta * log-ratio`, per token, step or response.
        groups_B: Prompt of each row: any integers, rows of a group need not be neighbours.
        estimator: A key of `ESTIMATORS`, or an `Estimator`.
        preset: A key of `PRESETS`, or a `Preset`.
        beta: The beta inside `rewards_BT`, for presets that score with the bare log-ratio. Without it the rewards are
            taken as they are, which `max_return` makes equal up to its epsilon.
        gamma_process, gamma_outcome, gae_lambda, whiten: Override the preset.
        process_weight: Multiplies the preset's `coef_process`. 0 removes the process part.
        outcome_weight: Multiplies the preset's `coef_outcome`.
        values_BT: The critic's value before each token. Only `ppo` reads it.

    Raises:
        ValueError: for an unknown name, a group of one where the estimator compares responses, a missing beta, or for
            `ppo` without values or with two discounts.
    """
    if isinstance(estimator, str) and estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r}: need one of {', '.join(ESTIMATORS)}")
    function = estimator if callable(estimator) else ESTIMATORS[estimator]
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: need one of {', '.join(PRESETS)}, or a Preset")
    chosen = PRESETS[preset] if isinstance(preset, str) else preset
    chosen = replace(
        chosen,
        coef_process=process_weight * chosen.coef_process,
        coef_outcome=outcome_weight * chosen.coef_outcome,
        gamma_process=chosen.gamma_process if gamma_process is None else gamma_process,
        gamma_outcome=chosen.gamma_outcome if gamma_outcome is None else gamma_outcome,
        gae_lambda=chosen.gae_lambda if gae_lambda is None else gae_lambda,
        whiten=chosen.whiten if whiten is None else whiten,
    )
    scores_BT = _process_scores(rewards_BT, mask_BT, beta, chosen)
    paid_B = outcomes_B.to(scores_BT.dtype)
    inputs = AdvantageInputs(paid_B, rewards_BT, scores_BT, mask_BT, groups_B, values_BT)
    advantages_BT = function(inputs, chosen)
    return masking.whiten(advantages_BT, mask_BT) if chosen.whiten else advantages_BT


def overlong_penalty(lengths_B: Tensor, *, limit: int, window: int) -> Tensor:
    """Penalty on the outcome of a long response: 0 up to `limit - window` tokens, linearly down to -1 at `limit`.

    The soft overlong punishment of DAPO (arXiv 2503.14476, Eq. 13), there with a limit of 20480 and a window of 4096.
    """
    return -((lengths_B - (limit - window)) / window).clamp(0.0, 1.0)


def leave_one_out(outcomes_B: Tensor, groups_B: Tensor) -> Tensor:
    """Outcome of each response less the mean outcome of the others in its group.

    Raises:
        ValueError: if a group has one member, which leaves nothing to compare with.
    """
    outcomes_B = _floating(outcomes_B)
    others_B = _num_others(groups_B)
    return outcomes_B - (group_sum(outcomes_B, groups_B) - outcomes_B) / others_B


def process_returns(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, *, form: LooForm, gamma: float) -> Tensor:
    """Leave-one-out process return of each token: the discounted sum, from it on, of rewards less a baseline.

    With `mean_j` the mean token reward of response j, and K responses in the group:

    - `paper` (Eq. 5): each token counts `r_t - sum_{j != i} mean_j / (K - 1)`.
    - `authors` (both published programs): each token counts `K / (K - 1) r_t - sum_j mean_j / (K - 1)`. It amplifies
      a token's deviation from its own response's mean by K / (K - 1).

    Both remove any constant added to every token of the group, whatever the lengths; with gamma = 1 they agree on the
    first token. No normaliser is applied.

    Raises:
        ValueError: if a group has one member, or for an unknown form.
    """
    return discounted_suffix_sum(_less_baseline(rewards_BT, mask_BT, groups_B, form), mask_BT, gamma=gamma)


def peak_return(rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Largest absolute undiscounted reward-to-go, `max_{i,t} |sum_{s >= t} r_{i,s}|`, of the whole batch."""
    return discounted_suffix_sum(rewards_BT, mask_BT, gamma=1.0).abs().max()


def batch_norm(rewards_BT: Tensor, mask_BT: Tensor, *, eps: float = 1e-6, noise_floor: float = 1e-5) -> Tensor:
    """Process rewards divided by `peak_return + eps`, so that every process return lies in [-1, 1].

    Not in the paper; both published programs do it. With a peak below `noise_floor` the result is exactly 0: while the
    PRM still equals its reference the log-ratios are rounding noise, which must not become as large as an outcome.
    """
    filled_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    peak = peak_return(rewards_BT, mask_BT)
    return (filled_BT / (peak + eps)).masked_fill(peak < noise_floor, 0.0)


def group_normalised(outcomes_B: Tensor, groups_B: Tensor) -> Tensor:
    """GRPO: `(o - mean) / (std + 1e-6)` within the group, std with the K - 1 correction. 0 in a group of equals.

    Raises:
        ValueError: if a group has one member.
    """
    centred_B, std_B = _group_moments(_floating(outcomes_B), groups_B)
    return centred_B / (std_B + GROUP_EPS)


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: (advantages, returns = advantages + values), both 0 on padding.

    `delta_t = r_t + gamma V_{t+1} - V_t` and `A_t = sum_k (gamma lam)^k delta_{t+k}`. The value after the last valid
    token is 0: the response is over. Values on padding are never read (in the authors' program they leak).
    """
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    next_values_BT = pad(values_BT[:, 1:], (0, 1))
    deltas_BT = rewards_BT + gamma * next_values_BT - values_BT
    advantages_BT = discounted_suffix_sum(deltas_BT, mask_BT, gamma=gamma * lam)
    return advantages_BT, advantages_BT + values_BT


def _rloo(given: AdvantageInputs, preset: Preset) -> Tensor:
    """REINFORCE with a leave-one-out baseline (Eq. 5)."""
    baselined_BT = _less_baseline(given.scores_BT, given.mask_BT, given.groups_B, preset.loo_form)
    return _returns(leave_one_out(given.outcomes_B, given.groups_B), baselined_BT, given.mask_BT, preset)


def _grpo(given: AdvantageInputs, preset: Preset) -> Tensor:
    """Group-relative (Eq. 7): z-scores within the group, for process rewards those of the responses' mean rewards.

    Z-scores are summed over the remaining tokens, so without whitening the process part grows with length. It is 0
    where all means are equal.
    """
    mean_B = masked_mean(given.scores_BT, given.mask_BT, dim=1)
    _, std_B = _group_moments(mean_B, given.groups_B)
    scaled_BT = (given.scores_BT - group_mean(mean_B, given.groups_B)[:, None]) / (std_B + GROUP_EPS)[:, None]
    scaled_BT = scaled_BT.masked_fill(~given.mask_BT | (std_B == 0)[:, None], 0.0)
    return _returns(group_normalised(given.outcomes_B, given.groups_B), scaled_BT, given.mask_BT, preset)


def _dr_grpo(given: AdvantageInputs, preset: Preset) -> Tensor:
    """Dr. GRPO (arXiv 2503.20783): the group's mean is the baseline. Its loss is `aggregate="constant_length"`."""
    centred_B, _ = _group_moments(given.outcomes_B, given.groups_B)
    mean_B = group_mean(masked_mean(given.scores_BT, given.mask_BT, dim=1), given.groups_B)
    centred_BT = (given.scores_BT - mean_B[:, None]).masked_fill(~given.mask_BT, 0.0)
    return _returns(centred_B, centred_BT, given.mask_BT, preset)


def _reinforce(given: AdvantageInputs, preset: Preset) -> Tensor:
    """No baseline (Eq. 8): outcome plus reward-to-go."""
    return _returns(given.outcomes_B, given.scores_BT, given.mask_BT, preset)


def _reinforce_pp(given: AdvantageInputs, preset: Preset) -> Tensor:
    """REINFORCE++ (arXiv 2501.03262): whitened over the whole batch whatever the preset says, no groups."""
    return masking.whiten(_reinforce(given, preset), given.mask_BT)


def _ppo(given: AdvantageInputs, preset: Preset) -> Tensor:
    """GAE over a critic's values; the token reward is the process reward, and on the last token the outcome, too."""
    if given.values_BT is None:
        raise ValueError("values_BT=None: the estimator 'ppo' needs a critic's values")
    if preset.gamma_process != preset.gamma_outcome:
        raise ValueError(
            f"gamma_process={preset.gamma_process}, gamma_outcome={preset.gamma_outcome}: the critic of 'ppo' values "
            "their sum, so there is one discount for both"
        )
    paid_BT = preset.coef_process * given.scores_BT + preset.coef_outcome * _on_last(given.outcomes_B, given.mask_BT)
    advantages_BT, _ = gae(
        paid_BT, given.values_BT.detach(), given.mask_BT, gamma=preset.gamma_process, lam=preset.gae_lambda
    )
    return advantages_BT


def _prime_value(given: AdvantageInputs, preset: Preset) -> Tensor:
    """PRIME as a value model (paper, section 5.4): the outcome less the prefix sum of process rewards before the token.

    `q_{t-1}` estimates the outcome in the units of `beta * log-ratio`, so no preset rescales it.
    """
    outcome_BT = discounted_suffix_sum(
        _on_last(given.outcomes_B, given.mask_BT), given.mask_BT, gamma=preset.gamma_outcome
    )
    paid_BT = given.rewards_BT.masked_fill(~given.mask_BT, 0.0)
    value_BT = prefix_q(paid_BT, given.mask_BT) - paid_BT
    return preset.coef_outcome * outcome_BT - preset.coef_process * value_BT


def _returns(outcomes_B: Tensor, rewards_BT: Tensor, mask_BT: Tensor, preset: Preset) -> Tensor:
    """Weighted sum of discounted process rewards from each token on, and of the outcome on the last token."""
    process_BT = preset.coef_process * discounted_suffix_sum(rewards_BT, mask_BT, gamma=preset.gamma_process)
    outcome_BT = discounted_suffix_sum(_on_last(outcomes_B, mask_BT), mask_BT, gamma=preset.gamma_outcome)
    return process_BT + preset.coef_outcome * outcome_BT


def _on_last(x_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Each response's number on its last valid token, 0 elsewhere."""
    return x_B[:, None].expand(mask_BT.shape).masked_fill(~last_token(mask_BT), 0.0)


def _process_scores(rewards_BT: Tensor, mask_BT: Tensor, beta: float | None, preset: Preset) -> Tensor:
    """The preset's token scores: scale, last-token rule, normaliser, in this order."""
    scores_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    if preset.score_scale == "raw":
        if beta is None and preset.process_norm == "none":
            raise ValueError(
                "beta=None: a preset with score_scale='raw' and no normaliser needs the beta of the rewards"
            )
        scores_BT = scores_BT if beta is None else scores_BT / beta
    if preset.drop_last_token:
        scores_BT = scores_BT.masked_fill(last_token(mask_BT), 0.0)
    return batch_norm(scores_BT, mask_BT) if preset.process_norm == "max_return" else scores_BT


def _less_baseline(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, form: LooForm) -> Tensor:
    """Token rewards less the leave-one-out baseline of `form`; 0 on padding."""
    mean_B = masked_mean(rewards_BT, mask_BT, dim=1)
    others_B = _num_others(groups_B).to(mean_B.dtype)
    group_mean_sum_B = group_sum(mean_B, groups_B)
    if form == "paper":
        scale_B, baseline_B = torch.ones_like(mean_B), (group_mean_sum_B - mean_B) / others_B
    elif form == "authors":
        scale_B, baseline_B = (others_B + 1) / others_B, group_mean_sum_B / others_B
    else:
        raise ValueError(f"form={form!r}: need 'paper' or 'authors'")
    filled_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    return (scale_B[:, None] * filled_BT - baseline_B[:, None]).masked_fill(~mask_BT, 0.0)


def _group_moments(x_B: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation from the group's mean, and the group's sample standard deviation; exactly 0 where all are equal."""
    others_B = _num_others(groups_B)
    # Counted from the largest member, equal members are exactly 0. A rounded mean would leave 1e-8, and the division
    # by a deviation of 1e-8 + 1e-6 would make a visible advantage of it.
    shifted_B = x_B - group_max(x_B.detach(), groups_B)
    centred_B = shifted_B - group_mean(shifted_B, groups_B)
    variance_B = group_sum(centred_B.square(), groups_B) / others_B
    # sqrt has no gradient at 0; the detour through 1 keeps NaN out of it.
    is_flat_B = variance_B == 0
    return centred_B, variance_B.masked_fill(is_flat_B, 1.0).sqrt().masked_fill(is_flat_B, 0.0)


def _num_others(groups_B: Tensor) -> Tensor:
    """How many other responses the group of each row has; at least 1."""
    size_B = group_size(groups_B)
    if bool((size_B < 2).any()):
        alone = int(groups_B[size_B < 2][0])
        raise ValueError(
            f"group {alone} has 1 response, which leaves nothing to compare it with; "
            "sample at least 2 per prompt (sampling.group_size >= 2) or use the estimator 'reinforce'"
        )
    return size_B - 1


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


ESTIMATORS: dict[str, Estimator] = {
    "rloo": _rloo,
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
    "reinforce": _reinforce,
    "reinforce_pp": _reinforce_pp,
    "ppo": _ppo,
    "prime_value": _prime_value,
}
