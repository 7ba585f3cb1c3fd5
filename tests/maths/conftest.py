"""Random batches for the tests of the mathematics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomBatch:
    outcomes_B: Tensor
    rewards_BT: Tensor
    mask_BT: Tensor
    groups_B: Tensor

    def rows(self, index: Tensor) -> RandomBatch:
        return RandomBatch(self.outcomes_B[index], self.rewards_BT[index], self.mask_BT[index], self.groups_B[index])


def _random_batch(
    seed: int = 0,
    *,
    group_sizes: Sequence[int] = (3, 2, 4),
    num_tokens: int = 7,
    soft: bool = False,
    dtype: torch.dtype = torch.float64,
) -> RandomBatch:
    """Groups with arbitrary ids and scattered rows, right-padded responses of 1 to `num_tokens` tokens."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(group_sizes)
    ids_P = torch.randperm(1000, generator=generator)[: len(group_sizes)] - 500
    groups_B = ids_P.repeat_interleave(torch.tensor(group_sizes))[torch.randperm(size, generator=generator)]
    lengths_B = torch.randint(1, num_tokens + 1, (size,), generator=generator)
    outcomes_B = torch.rand(size, generator=generator, dtype=dtype)
    return RandomBatch(
        outcomes_B=outcomes_B if soft else outcomes_B.round(),
        rewards_BT=torch.randn(size, num_tokens, generator=generator, dtype=dtype),
        mask_BT=torch.arange(num_tokens) < lengths_B[:, None],
        groups_B=groups_B,
    )


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., RandomBatch]:
    return _random_batch
