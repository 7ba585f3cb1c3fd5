"""Accuracy with confidence intervals that are honest for few problems, and the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

_UPPER = 0.975


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A mean over problems with its 95 % interval. The problems stand for all of their kind."""

    mean: float
    low: float
    high: float
    n: int
    """Problems."""


def accuracy(values: Sequence[float], *, responses: int | None = None) -> Accuracy:
    """Mean of one number in [0, 1] per problem, with the interval of Wilson (1927). Its width is never zero.

    `responses`: how many were drawn for all values together; None: one per problem. Those to one problem are alike, so
    they count as the number of independent ones that would spread as much: mean * (1 - mean) / (squared standard error
    between problems), at least one per problem and at most all. As the spread is an estimate, the quantile is then
    Student's.
    """
    problems = len(values)
    assert problems > 0, "an accuracy needs at least one problem"
    mean, count, quantile = float(np.mean(values)), float(problems), float(ndtri(_UPPER))
    if responses is not None and responses > problems > 1:
        squared_error = float(np.var(values, ddof=1)) / problems
        # Without any spread nothing is known of it: as many as there are problems, no more.
        count = min(max(mean * (1 - mean) / squared_error, problems), responses) if squared_error else count
        quantile = float(stdtrit(problems - 1, _UPPER))
    extra = quantile**2 / count
    centre = (mean + extra / 2) / (1 + extra)
    half = math.sqrt(mean * (1 - mean) * extra + extra**2 / 4) / (1 + extra)
    # Rounding must not push a bound past the mean: at a mean of 0 the lower bound is 0.
    low, high = max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))
    return Accuracy(mean, low, high, problems)


def difference(values: Sequence[float]) -> Accuracy:
    """Mean of one difference in [-1, 1] per problem, with the adjusted interval of Agresti and Min (2005).

    Half an observation of -1, half of 1 and one of 0 are added, so that equal scores on few problems prove little.
    """
    assert len(values) > 0, "a difference needs at least one problem"
    count = len(values) + 2
    centre = math.fsum(values) / count
    half = float(ndtri(_UPPER)) * math.sqrt(((math.fsum(v * v for v in values) + 1) / count - centre**2) / count)
    mean = math.fsum(values) / len(values)
    return Accuracy(mean, max(-1.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)), len(values))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of `k` responses drawn without replacement from `samples` is correct.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).
    """
    assert 0 <= correct <= samples, f"{correct} of {samples} responses cannot be correct"
    assert 1 <= k <= samples, f"pass@{k} needs 1 <= k <= {samples}, the number of samples"
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
