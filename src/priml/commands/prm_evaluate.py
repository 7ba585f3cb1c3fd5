"""`priml prm evaluate`: ProcessBench and PRMBench, with what is known of their problems' way into training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from priml.commands.prm_score import prepare, scores_path
from priml.config.prm import BestThreshold, LineSteps, PrmEvaluateConfig, ProcessBenchFile
from priml.data.labelled import read_prompts
from priml.data.process_files import LabelledSteps, read_prm_bench, read_process_bench
from priml.errors import DataError
from priml.evaluate.contamination import find_overlap, known_note
from priml.evaluate.first_error import Solution, best_threshold, dealt_out, first_error, localisation
from priml.evaluate.prm_bench import ScoredSteps, best_prm_threshold, prm_bench
from priml.evaluate.scored import ScoredResponse, write_scores
from priml.files import write_json
from priml.runs.folder import check_unused, explain_full_disk

_DEALS = 20
"""How often scores are dealt out at random, to see what F1 a blind PRM has."""


@dataclass(frozen=True, slots=True)
class _Set:
    """A benchmark file as it was read."""

    name: str
    kind: str
    solutions: list[LabelledSteps]
    digest: str


def run_prm_evaluate(cfg: PrmEvaluateConfig) -> str:
    """Write `evaluation.json` and the scores of each set; returns the tables and the notes."""
    folder = cfg.run_dir
    check_unused(folder)
    sets = [_read(name, source) for name, source in cfg.data.items()]
    training = {name: read_prompts(path) for name, path in (cfg.training or {}).items()}
    places = {f"{one.name}/{i}": (one.name, s) for one in sets for i, s in enumerate(one.solutions)}
    responses = [replace(s.response, problem=replace(s.response.problem, id=id)) for id, (_, s) in places.items()]
    scoring = prepare(cfg, cfg.prm, responses, steps=LineSteps())
    with explain_full_disk(folder, lambda: "remove the run folder and start again"):
        scoring.create_run_dir(cfg, command="prm evaluate", seed=0, data={one.name: one.digest for one in sets})
        scored = scoring.run()
        by_set: dict[str, list[tuple[LabelledSteps, ScoredResponse]]] = {one.name: [] for one in sets}
        for one in scored:
            name, solution = places[one.response.problem.id]
            by_set[name].append((solution, one))
        results = _measure(cfg, sets, by_set) | {"notes": _notes(sets, training)}
        write_json(folder / "evaluation.json", results)
        for name, found in by_set.items():
            write_scores([one for _, one in found], scores_path(folder, name))
        write_json(folder / "summary.json", scoring.summary(scored))
    return _tables(results)


def _read(name: str, source: Any) -> _Set:
    read = read_process_bench if isinstance(source, ProcessBenchFile) else read_prm_bench
    solutions, digest = read(source.path, limit=source.limit)
    return _Set(name, source.kind, solutions, digest)


# --- numbers -----------------------------------------------------------------------------------------------------


def _measure(
    cfg: PrmEvaluateConfig,
    sets: Sequence[_Set],
    by_set: Mapping[str, Sequence[tuple[LabelledSteps, ScoredResponse]]],
) -> dict[str, Any]:
    """Everything at one threshold."""

    def score_rows(one: ScoredResponse) -> tuple[float, ...]:
        return tuple(accumulate(one.step_rewards)) if cfg.step_score == "prefix" else one.step_rewards

    solutions = {
        one.name: [Solution(score_rows(scored), s.first_wrong) for s, scored in by_set[one.name]]
        for one in sets
        if one.kind == "process_bench"
    }
    steps = {
        one.name: [
            ScoredSteps(score_rows(scored), s.wrong_steps, s.classification, s.twin) for s, scored in by_set[one.name]
        ]
        for one in sets
        if one.kind == "prm_bench"
    }
    chosen_on: str | None = None
    if isinstance(cfg.threshold, BestThreshold):
        chosen_on = cfg.threshold.data or sets[0].name
        if chosen_on in solutions:
            _check_both_kinds(chosen_on, solutions[chosen_on])
            value = best_threshold(solutions[chosen_on])
        else:
            value = best_prm_threshold(steps[chosen_on])
    else:
        value = cfg.threshold.value
    found = {name: first_error(some, value) for name, some in solutions.items()}
    blind = _blind_f1(solutions, chosen_on, value)
    return {
        "threshold": {"value": value, "chosen_on": chosen_on},
        "step_score": cfg.step_score,
        "process_bench": {
            name: one.asdict() | {"blind_f1": blind[name], "localisation": localisation(solutions[name])}
            for name, one in found.items()
        },
        "average_f1": sum(one.f1 for one in found.values()) / len(found) if found else None,
        "prm_bench": {name: prm_bench(some, value) for name, some in steps.items()},
    }


def _blind_f1(solutions: Mapping[str, Sequence[Solution]], chosen_on: str | None, given: float) -> dict[str, float]:
    """What the same scores come to when they are dealt out at random, with a threshold found as the real one was."""
    total = dict.fromkeys(solutions, 0.0)
    for seed in range(_DEALS):
        dealt = {name: dealt_out(some, seed=seed) for name, some in solutions.items()}
        value = best_threshold(dealt[chosen_on]) if chosen_on in dealt else given
        total = {name: total[name] + first_error(some, value).f1 for name, some in dealt.items()}
    return {name: f1 / _DEALS for name, f1 in total.items()}


def _check_both_kinds(name: str, solutions: Sequence[Solution]) -> None:
    erroneous = sum(s.first_wrong != -1 for s in solutions)
    if erroneous in (0, len(solutions)):
        raise DataError(
            f"threshold: {name} has {erroneous} erroneous and {len(solutions) - erroneous} correct solutions, and a "
            "threshold is chosen by both; name another set (threshold.data), or give a threshold (kind: fixed)"
        )


def _notes(sets: Sequence[_Set], training: Mapping[str, Sequence[str]]) -> list[str]:
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


# --- words -------------------------------------------------------------------------------------------------------


def _tables(results: Mapping[str, Any]) -> str:
    threshold = results["threshold"]
    chosen = threshold["chosen_on"]
    where = f"chosen on {chosen}, whose own number it flatters" if chosen else "given"
    lines = [f"A step is wrong when its {results['step_score']} is below {threshold['value']:.4g} ({where})."]
    if results["process_bench"]:
        lines += ["", "ProcessBench        F1  [95 % interval]  erroneous  correct  blind F1  |   AUC    hit  chance"]
        lines += [_first_error_line(name, one, name == chosen) for name, one in results["process_bench"].items()]
        lines += [f"{'average':<14}{100 * results['average_f1']:8.1f}"]
        lines += [
            "Blind F1: of the same scores, dealt out over the steps at random. "
            "AUC: of the score, first wrong steps against the right ones before them (chance 0.5); "
            "hit: the first wrong step scores lowest of all."
        ]
    for name, one in results["prm_bench"].items():
        lines += ["", f"{name:<22}PRMScore    F1  neg. F1  first error  solutions"]
        lines += [_class_line(kind, found) for kind, found in one["classes"].items()]
        lines += [_class_line("total", one["total"])]
    return "\n".join([*lines, "", *(f"note: {note}" for note in results["notes"])])


def _first_error_line(name: str, one: Mapping[str, Any], is_flattered: bool) -> str:
    keys = ("f1", "low", "high", "erroneous", "correct", "blind_f1")
    f1, low, high, erroneous, correct, blind = (100 * one[key] for key in keys)
    place = one["localisation"]
    return (
        f"{name + '*' * is_flattered:<14}{f1:8.1f}  [{low:5.1f}, {high:5.1f}]  {erroneous:9.1f}  {correct:7.1f}"
        f"  {blind:8.1f}  | {_three(place['auc'])}  {_three(place['hit'])}   {_three(place['chance'])}"
    )


def _class_line(name: str, found: Mapping[str, Any]) -> str:
    values = "  ".join(
        f"{'–' if found[key] is None else format(100 * found[key], '.1f'):>{width}}"
        for key, width in (("prm_score", 8), ("f1", 4), ("negative_f1", 7), ("first_error", 11))
    )
    return f"{name:<22}{values}  {found['solutions']:>9}"


def _three(value: float | None) -> str:
    return "  –  " if value is None else f"{value:.3f}"
