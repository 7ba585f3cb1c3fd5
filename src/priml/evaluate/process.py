"""ProcessBench and PRMBench together: all sets at one threshold, with what blind scores would come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from priml.data.process_files import LabelledSteps
from priml.errors import DataError
from priml.evaluate.contamination import find_overlap, known_note
from priml.evaluate.first_error import Solution, best_threshold, first_error, localisation, shuffled_scores
from priml.evaluate.prm_bench import ScoredSteps, best_prm_threshold, prm_bench
from priml.evaluate.scored import ScoredResponse

_SHUFFLES = 20
"""How often scores are shuffled, to see what F1 a blind PRM has."""


@dataclass(frozen=True, slots=True)
class ProcessSet:
    """A benchmark file."""

    name: str
    kind: str
    """`process_bench` or `prm_bench`."""
    solutions: list[LabelledSteps]
    digest: str


def measure_sets(
    sets: Sequence[ProcessSet],
    scored: Mapping[str, Sequence[tuple[LabelledSteps, ScoredResponse]]],
    *,
    step_score: str,
    threshold: float | None,
    chosen_on: str,
) -> dict[str, Any]:
    """Everything at one threshold: the one given, or the best one for the set `chosen_on`. Fit for JSON.

    `scored` holds the solutions of each set that were scored. `step_score`: `prefix` for the sum of rewards up to
    a step, else its own.

    Raises:
        DataError: no threshold can be chosen on that set.
    """

    def score_rows(one: ScoredResponse) -> tuple[float, ...]:
        return tuple(accumulate(one.step_rewards)) if step_score == "prefix" else one.step_rewards

    solutions: dict[str, list[Solution]] = {}
    steps: dict[str, list[ScoredSteps]] = {}
    for one in sets:
        pairs = [(score_rows(response), solution) for solution, response in scored[one.name]]
        if one.kind == "process_bench":
            solutions[one.name] = [Solution(scores, s.first_wrong) for scores, s in pairs]
        else:
            steps[one.name] = [ScoredSteps(scores, s.wrong_steps, s.classification, s.twin) for scores, s in pairs]
    value = _best_threshold(solutions, steps, chosen_on) if threshold is None else threshold
    chosen = chosen_on if threshold is None else None
    found = {name: first_error(some, value) for name, some in solutions.items()}
    blind = _blind_f1(solutions, chosen, value)
    return {
        "threshold": {"value": value, "chosen_on": chosen},
        "step_score": step_score,
        "process_bench": {
            name: one.asdict() | {"blind_f1": blind[name], "localisation": localisation(solutions[name])}
            for name, one in found.items()
        },
        "average_f1": sum(one.f1 for one in found.values()) / len(found) if found else None,
        "prm_bench": {name: prm_bench(some, value) for name, some in steps.items()},
    }


def contamination_notes(sets: Sequence[ProcessSet], training: Mapping[str, Sequence[str]]) -> list[str]:
    """What is known of the way of these problems into training data; `training`: prompts by name of their file."""
    notes: list[str] = []
    for one in sets:
        known = known_note((s.id for s in one.solutions), kind=one.kind)
        notes += [f"{one.name}: {known}"] if known else []
        overlap = find_overlap([s.problem for s in one.solutions], dict(training))
        notes += [
            f"{one.name}: {seen} of {overlap.problems} distinct problems stand in {name}, by exact text (letters and "
            "digits); paraphrases were not looked for"
            for name, seen in overlap.seen.items()
        ]
    if not training:
        notes.append("No training file was given (training: {NAME: PATH}), so none was searched for these problems.")
    return notes


def _best_threshold(
    solutions: Mapping[str, Sequence[Solution]], steps: Mapping[str, Sequence[ScoredSteps]], name: str
) -> float:
    if name not in solutions:
        return best_prm_threshold(steps[name])
    _check_both_kinds(name, solutions[name])
    return best_threshold(solutions[name])


def _blind_f1(solutions: Mapping[str, Sequence[Solution]], chosen_on: str | None, given: float) -> dict[str, float]:
    """F1 of the same scores shuffled over all steps, with a threshold found as the real one was."""
    total = dict.fromkeys(solutions, 0.0)
    for seed in range(_SHUFFLES):
        shuffled = {name: shuffled_scores(some, seed=seed) for name, some in solutions.items()}
        value = best_threshold(shuffled[chosen_on]) if chosen_on in shuffled else given
        total = {name: total[name] + first_error(some, value).f1 for name, some in shuffled.items()}
    return {name: f1 / _SHUFFLES for name, f1 in total.items()}


def _check_both_kinds(name: str, solutions: Sequence[Solution]) -> None:
    erroneous = sum(s.first_wrong != -1 for s in solutions)
    if erroneous in (0, len(solutions)):
        raise DataError(
            f"threshold: {name} has {erroneous} erroneous and {len(solutions) - erroneous} correct solutions, and a "
            "threshold is chosen by both; name another set (threshold.data), or give a threshold (kind: fixed)"
        )
