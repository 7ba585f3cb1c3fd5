"""PRMBench (arXiv 2501.03124) as its authors compute it: steps called right or wrong, per class of error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from priml.data.process_files import CORRECT

WITHOUT_ERRORS = "multi_solutions"
"""The class whose solutions are all right: its PRMScore is the positive F1 alone."""


@dataclass(frozen=True, slots=True)
class ScoredSteps:
    """A solution whose steps a PRM has scored."""

    scores: tuple[float, ...]
    wrong_steps: frozenset[int]
    classification: str
    twin: str
    """What a modified solution has in common with the unmodified one."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Steps by what they are and what they are called; `right` is the positive class."""

    right_right: int = 0
    wrong_called_right: int = 0
    wrong_wrong: int = 0
    right_called_wrong: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.right_right + other.right_right,
            self.wrong_called_right + other.wrong_called_right,
            self.wrong_wrong + other.wrong_wrong,
            self.right_called_wrong + other.right_called_wrong,
        )

    @property
    def f1(self) -> float:
        """Of finding the right steps; 0 where it is undefined."""
        return _f1(self.right_right, self.wrong_called_right, self.right_called_wrong)

    @property
    def negative_f1(self) -> float:
        """Of finding the wrong steps; 0 where it is undefined."""
        return _f1(self.wrong_wrong, self.right_called_wrong, self.wrong_called_right)


def prm_bench(solutions: Sequence[ScoredSteps], threshold: float) -> dict[str, Any]:
    """Numbers for each class of error and over all of them. A step is called right when it scores above the threshold.

    `prm_score` is the mean of `f1` (right steps) and `negative_f1` (wrong steps); `accuracy`, of all steps, of the
    `right_steps` and of the `wrong_steps`; `first_error`, of the first wrong step of each solution; `similarity`: how
    far the share of steps called right differs, on average, between a modified solution and its unmodified twin.
    """
    twins = {s.twin: _share_right(s, threshold) for s in solutions if s.classification == CORRECT}
    modified = [s for s in solutions if s.classification != CORRECT]
    classes = sorted({s.classification for s in modified})
    return {
        "total": _measure(modified, threshold, twins, has_errors=True),
        "classes": {
            name: _measure(
                [s for s in modified if s.classification == name],
                threshold,
                twins,
                has_errors=name != WITHOUT_ERRORS,
            )
            for name in classes
        },
    }


def best_prm_threshold(solutions: Sequence[ScoredSteps], *, tried: int = 400) -> float:
    """The threshold with the highest total PRMScore among evenly spread quantiles of the scores."""
    modified = [s for s in solutions if s.classification != CORRECT]
    scores = np.array([score for s in modified for score in s.scores])
    is_wrong = np.array([i in s.wrong_steps for s in modified for i in range(len(s.scores))])
    candidates = np.unique(np.quantile(scores, np.linspace(0, 1, tried)))
    right, wrong = np.sort(scores[~is_wrong]), np.sort(scores[is_wrong])
    called_wrong = [np.searchsorted(kind, candidates, "right") for kind in (right, wrong)]
    values = [
        (counts.f1 + counts.negative_f1) / 2
        for r, w in zip(*called_wrong, strict=True)
        for counts in [Counts(len(right) - int(r), len(wrong) - int(w), int(w), int(r))]
    ]
    return float(candidates[int(np.argmax(values))])


def _measure(
    solutions: Sequence[ScoredSteps], threshold: float, twins: Mapping[str, float], *, has_errors: bool
) -> dict[str, Any]:
    counts = sum((_count(s, threshold) for s in solutions), Counts())
    right = counts.right_right + counts.right_called_wrong
    wrong = counts.wrong_wrong + counts.wrong_called_right
    firsts = [s.scores[min(s.wrong_steps)] <= threshold for s in solutions if s.wrong_steps]
    # As in the authors' program, a twin of which no step is called right is not compared with.
    differences = [abs(_share_right(s, threshold) - twins[s.twin]) for s in solutions if twins.get(s.twin)]
    return {
        "prm_score": (counts.f1 + counts.negative_f1) / 2 if has_errors else counts.f1,
        "f1": counts.f1,
        "negative_f1": counts.negative_f1 if has_errors else None,
        "accuracy": _ratio(counts.right_right + counts.wrong_wrong, right + wrong),
        "right_steps": _ratio(counts.right_right, right),
        "wrong_steps": _ratio(counts.wrong_wrong, wrong),
        "first_error": _ratio(sum(firsts), len(firsts)),
        "similarity": _ratio(sum(differences), len(differences)),
        "solutions": len(solutions),
        "steps": right + wrong,
    }


def _count(solution: ScoredSteps, threshold: float) -> Counts:
    called_right = [score > threshold for score in solution.scores]
    is_right = [i not in solution.wrong_steps for i in range(len(solution.scores))]
    pairs = list(zip(is_right, called_right, strict=True))
    return Counts(
        pairs.count((True, True)), pairs.count((False, True)), pairs.count((False, False)), pairs.count((True, False))
    )


def _share_right(solution: ScoredSteps, threshold: float) -> float:
    return sum(score > threshold for score in solution.scores) / len(solution.scores)


def _f1(hits: int, false_alarms: int, misses: int) -> float:
    total = 2 * hits + false_alarms + misses
    return 2 * hits / total if total else 0.0


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
