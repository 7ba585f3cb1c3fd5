"""Results as tables of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from priml.evaluate.ranking import Ranking


def ranking_table(ranking: Ranking) -> str:
    """Accuracy by method and number of responses."""
    sizes = list(ranking.curve)
    lines = [f"{ranking.problems} problems; share answered right with n responses, 95 % interval for n = {sizes[-1]}"]
    lines.append(" " * 14 + "".join(f"{f'n={n}':>8}" for n in sizes))
    for method, last in ranking.curve[sizes[-1]].items():
        values = "".join(f"{ranking.curve[n][method].mean:8.3f}" for n in sizes)
        above = ranking.above_majority.get(method)
        gap = f"  above majority {above.mean:+.3f} [{above.low:+.3f}, {above.high:+.3f}]" if above else ""
        lines.append(f"{method:<14}{values}  [{last.low:.3f}, {last.high:.3f}]{gap}")
    return "\n".join(lines)


def process_tables(results: Mapping[str, Any]) -> str:
    """ProcessBench and PRMBench at one threshold, and the notes; `results` as in `evaluation.json`."""
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
    found = (one["localisation"][key] for key in ("auc", "hit", "chance"))
    numbers = ["  –  " if value is None else f"{value:.3f}" for value in found]
    return (
        f"{name + '*' * is_flattered:<14}{f1:8.1f}  [{low:5.1f}, {high:5.1f}]  {erroneous:9.1f}  {correct:7.1f}"
        f"  {blind:8.1f}  | {numbers[0]}  {numbers[1]}   {numbers[2]}"
    )


def _class_line(name: str, found: Mapping[str, Any]) -> str:
    values = "  ".join(
        f"{'–' if found[key] is None else format(100 * found[key], '.1f'):>{width}}"
        for key, width in (("prm_score", 8), ("f1", 4), ("negative_f1", 7), ("first_error", 11))
    )
    return f"{name:<22}{values}  {found['solutions']:>9}"
