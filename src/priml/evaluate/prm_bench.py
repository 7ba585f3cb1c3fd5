"""PRMBench (arXiv 2501.03124) as its authors compute it: steps called right or wrong, per class of error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from priml.data.process_files import CORRECT, ScoredSteps

WITHOUT_ERRORS = "multi_solutions"
"""The class whose solutions are all right: its PRMScore is the positive F1 alone."""


def prm_bench(solutions: Sequence[ScoredSteps], threshold: float) -> dict[str, Any]:
    """Numbers for each class of error and over all of them. A step is called right when it scores above the threshold.

    `prm_score` is the mean of `f1` (right steps) and `negative_f1` (wrong steps); `accuracy`, of all steps, of the
    `right_steps` and of the `wrong_steps`; `first_error`, of the first wrong step of each solution; `similarity`: how
    far the share of steps called right differs, on average, between a modified solution and its unmodified twin.
    """
    twins = {s.twin: _share_right(s, threshold) for s in solutions if s.classification == CORRECT}
    modified = [s for s in solutions if s.classification != CORRECT]
    classes: dict[str, list[ScoredSteps]] = {name: [] for name in sorted({s.classification for s in modified})}
    for solution in modified:
        classes[solution.classification].append(solution)
    return {
        "total": _measure(modified, threshold, twins, has_errors=True),
        "classes": {
            name: _measure(some, threshold, twins, has_errors=name != WITHOUT_ERRORS) for name, some in classes.items()
        },
    }


def best_prm_threshold(solutions: Sequence[ScoredSteps]) -> float:
    """The threshold with the highest total PRMScore among 400 evenly spread quantiles of the scores."""
    scores, is_right = _steps([s for s in solutions if s.classification != CORRECT])
    candidates = np.unique(np.quantile(scores, np.linspace(0, 1, 400)))
    right, wrong = np.sort(scores[is_right]), np.sort(scores[~is_right])
    right_called_wrong, wrong_called_wrong = (np.searchsorted(kind, candidates, "right") for kind in (right, wrong))
    called_wrong = right_called_wrong + wrong_called_wrong
    values = [
        (_f1(len(right) - missed, len(right), len(scores) - called) + _f1(found, len(wrong), called)) / 2
        for missed, found, called in zip(right_called_wrong, wrong_called_wrong, called_wrong, strict=True)
    ]
    return float(candidates[int(np.argmax(values))])


def _measure(
    solutions: Sequence[ScoredSteps], threshold: float, twins: Mapping[str, float], *, has_errors: bool
) -> dict[str, Any]:
    scores, is_right = _steps(solutions)
    called_right = scores > threshold
    steps, right, called = len(scores), int(is_right.sum()), int(called_right.sum())
    right_found, wrong_found = int((is_right & called_right).sum()), int((~is_right & ~called_right).sum())
    f1, negative_f1 = _f1(right_found, right, called), _f1(wrong_found, steps - right, steps - called)
    firsts = [s.scores[s.first_wrong] <= threshold for s in solutions if s.wrong_steps]
    # As in the authors' program, a twin of which no step is called right is not compared with.
    differences = [abs(_share_right(s, threshold) - twins[s.twin]) for s in solutions if twins.get(s.twin)]
    return {
        "prm_score": (f1 + negative_f1) / 2 if has_errors else f1,
        "f1": f1,
        "negative_f1": negative_f1 if has_errors else None,
        "accuracy": _ratio(right_found + wrong_found, steps),
        "right_steps": _ratio(right_found, right),
        "wrong_steps": _ratio(wrong_found, steps - right),
        "first_error": _ratio(sum(firsts), len(firsts)),
        "similarity": _ratio(sum(differences), len(differences)),
        "solutions": len(solutions),
        "steps": steps,
    }


def _steps(solutions: Sequence[ScoredSteps]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all steps, and which of these are right."""
    is_right = [i not in s.wrong_steps for s in solutions for i in range(len(s.scores))]
    return np.array([score for s in solutions for score in s.scores]), np.array(is_right, dtype=bool)


def _share_right(solution: ScoredSteps, threshold: float) -> float:
    return sum(score > threshold for score in solution.scores) / len(solution.scores)


def _f1(found: int, positive: int, called: int) -> float:
    """F1 of `found` hits among `called` steps, with `positive` steps to find; 0 where it is undefined."""
    return 2 * found / (positive + called) if positive + called else 0.0


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
