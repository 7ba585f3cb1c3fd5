"""ProcessBench and PRMBench: all sets at one threshold, the F1 of blind scores, and what a model may have seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from priml.data.process_files import LabelledSteps, ScoredSteps
from priml.errors import DataError
from priml.evaluate.first_error import best_threshold, first_error, localisation, shuffled_scores
from priml.evaluate.prm_bench import best_prm_threshold, prm_bench
from priml.evaluate.scored import ScoredResponse

_SHUFFLES = 20
"""How often scores are shuffled, to see what F1 a blind PRM has."""
_LONG_ENOUGH = 40
"""A problem of this many letters and digits counts as seen when it stands anywhere in a training prompt (which may have
a template around it); a shorter one must be all of it."""

KNOWN = {
    "gsm8k-": "All problems of ProcessBench-GSM8K are from the GSM8K test set.",
    "math-": "Of the 955 distinct problems of ProcessBench-MATH, 847 are in the 12,000-problem training split of MATH "
    "that PRM800K introduced, and 108 of its rows are problems of MATH-500: a model trained on either has seen them, "
    "though not these solutions.",
    "olympiadbench-": "The problems of ProcessBench-OlympiadBench come from OlympiadBench.",
    "omnimath-": "The problems of ProcessBench-OmniMATH come from Omni-MATH.",
    "prm_bench": "PRMBench is built on PRM800K: of its 916 distinct problems, 305 are in MATH-500 and 397 in the "
    "12,000-problem training split of MATH.",
}
"""By the beginning of a row's id, or by the kind of file. Counted by exact text, letters and digits only."""


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

    solutions: dict[str, list[ScoredSteps]] = {}
    steps: dict[str, list[ScoredSteps]] = {}
    for one in sets:
        kind = solutions if one.kind == "process_bench" else steps
        kind[one.name] = [
            ScoredSteps(
                scores=score_rows(response),
                wrong_steps=labelled.wrong_steps,
                classification=labelled.classification,
                twin=labelled.twin,
            )
            for labelled, response in scored[one.name]
        ]
    value = _best_threshold(solutions, steps, chosen_on) if threshold is None else threshold
    chosen = chosen_on if threshold is None else None
    found = {name: first_error(some, value) for name, some in solutions.items()}
    blind = _blind_f1(solutions, chosen, value)
    return {
        "threshold": {"value": value, "chosen_on": chosen},
        "step_score": step_score,
        "process_bench": {
            name: asdict(one) | {"blind_f1": blind[name], "localisation": localisation(solutions[name])}
            for name, one in found.items()
        },
        "average_f1": sum(one.f1 for one in found.values()) / len(found) if found else None,
        "prm_bench": {name: prm_bench(some, value) for name, some in steps.items()},
    }


def _best_threshold(
    solutions: Mapping[str, Sequence[ScoredSteps]], steps: Mapping[str, Sequence[ScoredSteps]], name: str
) -> float:
    if name not in solutions:
        return best_prm_threshold(steps[name])
    erroneous, total = sum(s.first_wrong != -1 for s in solutions[name]), len(solutions[name])
    if erroneous in (0, total):
        raise DataError(
            f"threshold: {name} has {erroneous} erroneous and {total - erroneous} correct solutions, and a threshold "
            "is chosen by both; name another set (threshold.data), or give a threshold (kind: fixed)"
        )
    return best_threshold(solutions[name])


def _blind_f1(solutions: Mapping[str, Sequence[ScoredSteps]], chosen_on: str | None, given: float) -> dict[str, float]:
    """F1 of the same scores shuffled over all steps, with a threshold found as the real one was."""
    total = dict.fromkeys(solutions, 0.0)
    for seed in range(_SHUFFLES):
        shuffled = {name: shuffled_scores(some, seed=seed) for name, some in solutions.items()}
        value = best_threshold(shuffled[chosen_on]) if chosen_on in shuffled else given
        total = {name: total[name] + first_error(some, value).f1 for name, some in shuffled.items()}
    return {name: f1 / _SHUFFLES for name, f1 in total.items()}


# --- contamination --------------------------------------------------------------------------------------------------


def contamination_notes(sets: Sequence[ProcessSet], training: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes on these problems in training data. `training`: prompts by name of their file."""
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


@dataclass(frozen=True, slots=True)
class Overlap:
    """Benchmark problems found in training files by their exact text; paraphrases are not looked for."""

    problems: int
    """Distinct problems of the benchmark."""
    seen: dict[str, int]
    """How many of them stand in each training file."""


def known_note(ids: Iterable[str], *, kind: str) -> str | None:
    """The note on a benchmark, found by the ids of its rows or by its kind."""
    if kind in KNOWN:
        return KNOWN[kind]
    first = next(iter(ids), "")
    return next((note for start, note in KNOWN.items() if first.startswith(start)), None)


def find_overlap(problems: Sequence[str], training: dict[str, Sequence[str]]) -> Overlap:
    """Problems that are in the prompts of each training file, letter for letter and digit for digit."""
    distinct = {bare(problem) for problem in problems}
    seen: dict[str, int] = {}
    for name, prompts in training.items():
        bare_prompts = {bare(prompt) for prompt in prompts}
        # One text to search in; the separator is no letter, so nothing is found across two prompts.
        everything = "\n".join(sorted(bare_prompts))
        seen[name] = sum(p in bare_prompts or (len(p) >= _LONG_ENOUGH and p in everything) for p in distinct)
    return Overlap(len(distinct), seen)


def bare(text: str) -> str:
    """Letters and digits alone, in lower case: spaces, punctuation and LaTeX's signs differ between copies."""
    return "".join(char for char in text.lower() if char.isalnum())
