"""Results as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def evaluation_table(results: Mapping[str, Mapping[str, Any]], published: Mapping[str, Mapping[str, float]]) -> str:
    """`table.md`: a row for each set of `eval.json`, and what others published, in per cent, by set and model."""
    columns = ("set", "problems", "pass@1", "avg@k", "k", "pass@k", "maj@k", "cut", "no answer", "undecided", "tokens")
    lines = [*_head(columns), *(_evaluation_row(name, one) for name, one in results.items()), ""]
    lines += ["Per cent with 95 % intervals over problems; shares of all responses; mean tokens of a response.", ""]
    compared = [name for name in results if published.get(name)]
    if compared:
        models = list(dict.fromkeys(model for name in compared for model in published[name]))
        ours = {name: 100 * (results[name].get("greedy") or results[name]["sampled"])["mean"] for name in compared}
        rows = {"this run": ours} | {
            f"{model} (published)": {name: published[name].get(model) for name in compared} for model in models
        }
        lines += [*_head(["model", *compared, "mean"]), *(_compared_row(model, row) for model, row in rows.items()), ""]
        lines += ["Published rows are the paper's, measured by its program, and were not measured here.", ""]
    return "\n".join(lines)


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _evaluation_row(name: str, one: Mapping[str, Any]) -> str:
    samples = one["decoding"].get("samples", 0)
    scores = [one.get("greedy"), one.get("sampled")]
    at_k = [one.get(kind, {}).get(str(samples)) for kind in ("pass_at", "majority_at")]
    shares = (f"{100 * one[kind] / max(1, one['responses']):.1f}" for kind in ("truncated", "no_answer", "undecided"))
    problems = max(score["n"] for score in scores if score)
    cells = [name, problems, *map(_interval, scores), samples or "–", *map(_interval, at_k), *shares]
    tokens = f"{one['tokens']['mean']:.0f}" if one["tokens"] else "–"
    return f"| {' | '.join(map(str, cells))} | {tokens} |"


def _interval(score: Mapping[str, float] | None) -> str:
    return f"{100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]" if score else "–"


def _compared_row(model: str, row: Mapping[str, float | None]) -> str:
    known = [value for value in row.values() if value is not None]
    mean = f"{sum(known) / len(known):.1f}" if len(known) == len(row) else "–"
    return f"| {model} | {' | '.join('–' if value is None else f'{value:.1f}' for value in row.values())} | {mean} |"


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
