"""Two evaluations of the same problems: is one model better, and how large a difference could have been seen?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri
from scipy.stats import binomtest, permutation_test

from priml.evaluate.scores import Accuracy, difference

_DRAWS = 9_999
"""Signs of the differences are flipped in all ways where there are no more than this (13 problems), else in so many."""
_POWER = 0.8


@dataclass(frozen=True, slots=True)
class Comparison:
    """One set of problems, evaluated twice."""

    name: str
    decoding: str
    """`greedy` or `sampled`."""
    gain: Accuracy
    """The second evaluation above the first, per problem."""
    test: str
    """`mcnemar`: exact, for outcomes of 0 and 1; `permutation`: of signs, for mean outcomes."""
    p_value: float
    """Two-sided: how often chance alone gives such a difference."""
    adjusted: float
    """By Holm (1979), over all comparisons that were made together."""
    visible: float
    """The smallest true difference that is found in 80 % of such comparisons, at a p-value of 0.05."""


def compare(name: str, decoding: str, first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare mean outcomes, in [0, 1], of the same problems in the same order. `adjusted` is still the p-value."""
    gains = np.subtract(second, first)
    is_binary = set(first) | set(second) <= {0.0, 1.0}
    p_value = _mcnemar(gains) if is_binary else _sign_flips(gains)
    # Half a difference each way is added, as in the interval: equal results do not show that nothing could be seen.
    error = math.sqrt((float(np.sum(gains**2)) + 1) / (len(gains) + 2) / len(gains))
    visible = min(1.0, float(ndtri(0.975) + ndtri(_POWER)) * error)
    test = "mcnemar" if is_binary else "permutation"
    return Comparison(name, decoding, difference(gains.tolist()), test, p_value, p_value, visible)


def adjust(found: Sequence[Comparison]) -> list[Comparison]:
    """The same with p-values adjusted for their number, so that one of many sets does not win by chance."""
    ordered = sorted(range(len(found)), key=lambda i: found[i].p_value)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, i in enumerate(ordered):
        largest = max(largest, min(1.0, (len(found) - rank) * found[i].p_value))
        adjusted[i] = largest
    return [replace(one, adjusted=adjusted[i]) for i, one in enumerate(found)]


def comparison_table(found: Sequence[Comparison], means: Mapping[str, tuple[float, float]]) -> str:
    """As text: means in per cent by set and decoding, and what is behind their difference."""
    lines = [f"{'set':<28}{'first':>8}{'second':>8}   {'gain, 95 % interval':<24}{'p':>8}{'p, Holm':>9}{'visible':>9}"]
    for one in found:
        key = f"{one.name} {one.decoding}"
        first, second = means[key]
        gain = f"{100 * one.gain.mean:+.1f} [{100 * one.gain.low:+.1f}, {100 * one.gain.high:+.1f}]"
        lines.append(
            f"{key:<28}{100 * first:>8.1f}{100 * second:>8.1f}   {gain:<24}{one.p_value:>8.4f}{one.adjusted:>9.4f}"
            f"{100 * one.visible:>9.1f}"
        )
    lines += ["Per cent and points. Paired by problem: exact McNemar for one response a problem, else permuted signs."]
    lines += ["visible: the smallest true difference that such a comparison finds four times in five."]
    return "\n".join(lines)


def _mcnemar(gains: np.ndarray) -> float:
    better, worse = int(np.sum(gains > 0)), int(np.sum(gains < 0))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sign_flips(gains: np.ndarray) -> float:
    changed = gains[gains != 0]
    if len(changed) < 2:  # one may as well have gone the other way
        return 1.0
    found = permutation_test(
        (changed,),
        lambda values, axis=-1: np.sum(values, axis=axis),
        permutation_type="samples",
        n_resamples=_DRAWS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
