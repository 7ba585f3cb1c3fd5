"""The implicit process reward: log-ratios of two language models, per token, per step or per response."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from priml.maths.masking import last_token


def implicit_rewards(prm_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, *, beta: float) -> Tensor:
    """Reward of each token: `beta * (log pi_prm - log pi_ref)`, zero on padding.

    Summed over a response it is the outcome reward the PRM believes in. No clamp and no length normalisation.
    """
    log_ratio_BT = prm_logprobs_BT.masked_fill(~mask_BT, 0.0) - ref_logprobs_BT.masked_fill(~mask_BT, 0.0)
    return beta * log_ratio_BT


def prefix_q(rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Action value of each token, `q_t = sum_{s <= t} r_s`; zero on padding.

    If the PRM is a normalised distribution, this is `beta * log E[exp(R(y') / beta)]` over continuations y' that the
    reference draws after token t (arXiv 2412.01981, Proposition 3.1). The value *before* a token is `q_t - r_t`.
    """
    return rewards_BT.masked_fill(~mask_BT, 0.0).cumsum(1).masked_fill(~mask_BT, 0.0)


def step_rewards(rewards_BT: Tensor, mask_BT: Tensor, step_ends: Sequence[Sequence[int] | NDArray[np.int32]]) -> Tensor:
    """Token rewards gathered into steps: each step's sum stands at its last token, 0 elsewhere and on padding.

    `step_ends` has, for each response, the increasing token indices at which its steps end. Tokens after the last end
    give their sum to the last valid token, so every response keeps its total.

    Raises:
        ValueError: if the ends of a response do not increase or lie outside it, or if there is not one list per row.
    """
    if len(step_ends) != mask_BT.shape[0]:
        raise ValueError(
            f"step_ends has {len(step_ends)} lists for {mask_BT.shape[0]} responses; give one per response"
        )
    device = mask_BT.device
    counts_B = torch.tensor([len(ends) for ends in step_ends], dtype=torch.int64, device=device)
    rows_S = torch.arange(len(step_ends), device=device).repeat_interleave(counts_B)
    ends_S = torch.as_tensor(np.concatenate([np.empty(0, np.int64), *step_ends]).astype(np.int64), device=device)
    _check_ends(rows_S, ends_S, mask_BT)

    num_tokens = mask_BT.shape[1]
    is_end_BT = last_token(mask_BT).index_put((rows_S, ends_S), torch.ones_like(ends_S, dtype=torch.bool))
    end_BT = torch.arange(num_tokens, device=device).expand_as(mask_BT).masked_fill(~is_end_BT, num_tokens)
    # The end of a token's step is the nearest end at or after it; padding after the response has none and adds 0.
    owner_BT = end_BT.flip(1).cummin(1).values.flip(1).clamp_max(num_tokens - 1)
    filled_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    return torch.zeros_like(filled_BT).scatter_add(1, owner_BT, filled_BT)


def whole_response_reward(rewards_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The response as a single step: its summed reward on its last valid token, 0 elsewhere."""
    return step_rewards(rewards_BT, mask_BT, [()] * mask_BT.shape[0])


def _check_ends(rows_S: Tensor, ends_S: Tensor, mask_BT: Tensor) -> None:
    num_tokens = mask_BT.shape[1]
    inside_S = (ends_S >= 0) & (ends_S < num_tokens)
    inside_S = inside_S & mask_BT[rows_S, ends_S.clamp(0, num_tokens - 1)]
    if not bool(inside_S.all()):
        at = int((~inside_S).nonzero()[0])
        row = int(rows_S[at])
        raise ValueError(
            f"step_ends[{row}]: {int(ends_S[at])} is not a valid token of the response, "
            f"which has {int(mask_BT[row].sum())} valid tokens; count from 0, the last token included"
        )
    falls_S = (rows_S[1:] == rows_S[:-1]) & (ends_S[1:] <= ends_S[:-1])
    if bool(falls_S.any()):
        at = int(falls_S.nonzero()[0])
        raise ValueError(
            f"step_ends[{int(rows_S[at])}]: {int(ends_S[at + 1])} follows {int(ends_S[at])}; step ends must increase"
        )
