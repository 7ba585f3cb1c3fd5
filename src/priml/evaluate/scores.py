"""Accuracy with bootstrap confidence intervals, and the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A mean over problems with its 95 % percentile-bootstrap interval (problems are resampled)."""

    mean: float
    low: float
    high: float
    n: int
    """Problems."""


def accuracy(values: Sequence[float], *, seed: int = 0) -> Accuracy:
    """Mean and interval of one number in [0, 1] per problem."""
    assert len(values) > 0, "an accuracy needs at least one problem"
    x = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # In slices, so that 10,000 resamples of a large benchmark do not need gigabytes.
    size = max(1, min(_RESAMPLES, 4_000_000 // len(x)))
    means = np.concatenate(
        [x[rng.integers(0, len(x), (min(size, _RESAMPLES - i), len(x)))].mean(1) for i in range(0, _RESAMPLES, size)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Accuracy(mean=float(x.mean()), low=float(low), high=float(high), n=len(x))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of `k` responses drawn without replacement from `samples` is correct.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).
    """
    assert 0 <= correct <= samples, f"{correct} of {samples} responses cannot be correct"
    assert 1 <= k <= samples, f"pass@{k} needs 1 <= k <= {samples}, the number of samples"
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
