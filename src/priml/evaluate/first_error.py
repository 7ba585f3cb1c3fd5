"""Does a PRM find the first wrong step? The measure of ProcessBench (arXiv 2412.06559), and two without a threshold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from priml.data.process_files import ScoredSteps
from priml.maths.prm_loss import auc

_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class FirstError:
    """F1 as ProcessBench defines it: the harmonic mean of two accuracies."""

    f1: float
    low: float
    high: float
    """Its 95 % interval, from the posteriors of the two accuracies under the prior of Jeffreys. Never of zero width."""
    erroneous: float
    """Share of the solutions with an error whose first wrong step was named exactly."""
    correct: float
    """Share of the correct solutions in which no step was called wrong."""
    num_erroneous: int
    num_correct: int


def predict(scores: Sequence[float], threshold: float) -> int:
    """The first step that scores below the threshold, -1 if none does."""
    return next((i for i, score in enumerate(scores) if score < threshold), -1)


def first_error(solutions: Sequence[ScoredSteps], threshold: float) -> FirstError:
    """Measure at a threshold; a kind of solution that does not occur has accuracy 0."""
    hits = [(s.first_wrong != -1, predict(s.scores, threshold) == s.first_wrong) for s in solutions]
    wrong, right = ([hit for is_wrong, hit in hits if is_wrong is kind] for kind in (True, False))
    shares = [sum(kind) / len(kind) if kind else 0.0 for kind in (wrong, right)]
    rng = np.random.default_rng(0)
    draws = [rng.beta(sum(kind) + 0.5, len(kind) - sum(kind) + 0.5, _DRAWS) for kind in (wrong, right)]
    low, high = np.percentile(_harmonic(*draws), [2.5, 97.5])
    f1 = float(_harmonic(np.array(shares[0]), np.array(shares[1])))
    return FirstError(
        f1=f1,
        low=min(float(low), f1),
        high=max(float(high), f1),
        erroneous=shares[0],
        correct=shares[1],
        num_erroneous=len(wrong),
        num_correct=len(right),
    )


def best_threshold(solutions: Sequence[ScoredSteps]) -> float:
    """The threshold with the highest F1 on these solutions, the lowest of equals. Exact: every score is tried."""
    # An erroneous solution is hit by a threshold above the score of its first wrong step and not above any before it.
    wrong = [s for s in solutions if s.first_wrong != -1]
    above = np.array([s.scores[s.first_wrong] for s in wrong])
    until = np.array([min(s.scores[: s.first_wrong], default=np.inf) for s in wrong])
    above, until = np.sort(above[above < until]), np.sort(until[above < until])
    lowest = np.sort([min(s.scores) for s in solutions if s.first_wrong == -1])

    tried = np.unique([score for s in solutions for score in s.scores])
    tried = np.append(tried, np.nextafter(tried[-1], np.inf))
    hit_wrong = np.searchsorted(above, tried, "left") - np.searchsorted(until, tried, "left")
    hit_right = len(lowest) - np.searchsorted(lowest, tried, "left")
    f1 = _harmonic(hit_wrong / max(1, len(wrong)), hit_right / max(1, len(lowest)))
    return float(tried[int(np.argmax(f1))])


def shuffled_scores(solutions: Sequence[ScoredSteps], *, seed: int) -> list[ScoredSteps]:
    """The same solutions with all their scores shuffled over all their steps, as from a blind PRM."""
    scores = iter(np.random.default_rng(seed).permutation([score for s in solutions for score in s.scores]).tolist())
    return [replace(s, scores=tuple(next(scores) for _ in s.scores)) for s in solutions]


def localisation(solutions: Sequence[ScoredSteps]) -> dict[str, float | int | None]:
    """Over the solutions with an error, without a threshold.

    `auc`: of the score, between the first wrong steps and the right steps before them; `hit`: how often the first wrong
    step has the lowest score of all, alone; `chance` of that for a blind guess; `solutions`: how many there are.
    """
    wrong = [s for s in solutions if s.first_wrong != -1]
    before = [score for s in wrong for score in s.scores[: s.first_wrong]]
    labels = torch.tensor([True] * len(before) + [False] * len(wrong))
    area = auc(torch.tensor([*before, *(s.scores[s.first_wrong] for s in wrong)], dtype=torch.float64), labels)
    # The lowest, and no other step with it: a PRM that gives every step the same hits nothing.
    hits = [s.scores[s.first_wrong] == min(s.scores) and s.scores.count(min(s.scores)) == 1 for s in wrong]
    return {
        "auc": None if area is None else float(area),
        "hit": statistics.mean(hits) if hits else None,
        "chance": statistics.mean(1 / len(s.scores) for s in wrong) if wrong else None,
        "solutions": len(wrong),
    }


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = a + b
    return np.divide(2 * a * b, total, out=np.zeros_like(total, dtype=float), where=total > 0)
