"""Reductions over the valid tokens of a batch, and over the groups its rows form.

`mask_BT` is True on the valid tokens of each response, which are neighbours: padding stands before or after them. All
functions of this package select with the mask before they compute. Padding may hold NaN, and `0 * NaN` is NaN.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

WHITEN_EPS = 1e-8


def masked_sum(x_BT: Tensor, mask_BT: Tensor, *, dim: int | None = None) -> Tensor:
    """Sum over the valid tokens: of the whole batch, or along `dim`. 0 where there are none."""
    filled = x_BT.masked_fill(~mask_BT, 0.0)
    return filled.sum() if dim is None else filled.sum(dim)


def masked_mean(x_BT: Tensor, mask_BT: Tensor, *, dim: int | None = None) -> Tensor:
    """Mean over the valid tokens: of the whole batch, or along `dim`. 0 where there are none."""
    count = mask_BT.sum() if dim is None else mask_BT.sum(dim)
    return masked_sum(x_BT, mask_BT, dim=dim) / count.clamp_min(1)


def whiten(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over all valid tokens; 0 on padding.

    `(x - mean) / sqrt(var + 1e-8)`, the variance with the N/(N-1) correction. A single valid token becomes 0.
    """
    filled = x_BT.masked_fill(~mask_BT, 0.0)
    count = mask_BT.sum()
    centred = (filled - filled.sum() / count.clamp_min(1)).masked_fill(~mask_BT, 0.0)
    variance = centred.square().sum() / (count - 1).clamp_min(1)
    return centred / (variance + WHITEN_EPS).sqrt()


def discounted_suffix_sum(x_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """Discounted sum from each token to the end of its response, `sum_{s >= t} gamma^(s-t) x_s`; 0 on padding.

    Computed by doubling, in log2(T) steps: where each entry holds the sum of its next `w` terms, adding `gamma^w` times
    the entry `w` further on makes it the sum of `2w` terms. Nothing is divided by a power of gamma, so long responses
    neither overflow nor lose digits.

    Raises:
        ValueError: if gamma is outside [0, 1].
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma={gamma}: a discount must lie in [0, 1]")
    total_BT = x_BT.masked_fill(~mask_BT, 0.0)
    width, factor = 1, gamma
    while width < total_BT.shape[1] and factor > 0.0:
        total_BT[:, :-width] += factor * total_BT[:, width:]
        width, factor = 2 * width, factor * factor
    return total_BT.masked_fill_(~mask_BT, 0.0)


def last_token(mask_BT: Tensor) -> Tensor:
    """True on the last valid token of each response, and nowhere in a response without any."""
    return mask_BT & ~pad(mask_BT[:, 1:], (0, 1))


def group_index(groups_B: Tensor) -> tuple[Tensor, int]:
    """Each row's group as a dense index 0..P-1, in the order of the ids, and the number of groups P."""
    unique = torch.unique(groups_B, return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    ids_P, index_B = cast(tuple[Tensor, Tensor], unique)
    return index_B, ids_P.shape[0]


def group_sum(x_B: Tensor, groups_B: Tensor) -> Tensor:
    """Sum of `x` over the group of each row, given back to every row of the group."""
    index_B, num_groups = group_index(groups_B)
    return x_B.new_zeros(num_groups).index_add(0, index_B, x_B)[index_B]


def group_size(groups_B: Tensor) -> Tensor:
    """Number of rows in the group of each row (int64)."""
    return group_sum(torch.ones_like(groups_B, dtype=torch.int64), groups_B)


def group_mean(x_B: Tensor, groups_B: Tensor) -> Tensor:
    """Mean of `x` over the group of each row, given back to every row of the group."""
    return group_sum(x_B, groups_B) / group_size(groups_B)


def group_max(x_B: Tensor, groups_B: Tensor) -> Tensor:
    """Largest `x` in the group of each row, given back to every row of the group."""
    index_B, num_groups = group_index(groups_B)
    lowest_P = x_B.new_full((num_groups,), float("-inf"))
    return lowest_P.scatter_reduce(0, index_B, x_B, "amax")[index_B]
