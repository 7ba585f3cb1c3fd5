"""`priml eval compare`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from priml.errors import UsageError
from priml.evaluate.compare import Comparison, adjust, compare, comparison_table
from priml.runs.folder import RunFolder

Problem = tuple[str, str]
"""Its id and its gold answer."""
Outcomes = dict[str, dict[Problem, float | None]]
"""Mean outcome by decoding and problem; None where all responses are undecided."""


def run_eval_compare(first: Path, second: Path) -> str:
    """Compare two finished evaluations, set by set; returns the table. A problem that is undecided in one is left out.

    Raises:
        UsageError: one is no finished evaluation; or they have no set in common, or a set with other problems or
            another decoding.
    """
    results = [_results(path) for path in (first, second)]
    shared = [name for name in results[0] if name in results[1]]
    if not shared:
        names = [", ".join(one) for one in results]
        raise UsageError(f"{first} has the sets {names[0]}, {second} has {names[1]}; need one of the same name in both")
    found: list[Comparison] = []
    means: dict[str, tuple[float, float]] = {}
    for name in shared:
        decodings = [one[name]["decoding"] for one in results]
        if decodings[0] != decodings[1]:
            raise UsageError(
                f"{name}: {first} has the decoding {decodings[0]}, {second} has {decodings[1]}; only "
                "the same decoding compares: evaluate one of them again"
            )
        before, after = (_outcomes(path, name) for path in (first, second))
        _check_same_problems(name, before, after, second)
        for decoding, chosen in before.items():
            problems = [p for p, outcome in chosen.items() if None not in (outcome, after[decoding][p])]
            pairs = [[side[decoding][p] or 0.0 for p in problems] for side in (before, after)]
            if problems:
                found.append(compare(name, decoding, *pairs))
                means[f"{name} {decoding}"] = (fmean(pairs[0]), fmean(pairs[1]))
    return f"first: {first}, second: {second}\n" + comparison_table(adjust(found), means)


def _results(path: Path) -> dict[str, dict[str, Any]]:
    file = RunFolder(path).results
    if not file.is_file():
        raise UsageError(f"{path}: found no {file.name}, need the folder of a finished evaluation")
    return json.loads(file.read_text(encoding="utf-8"))


def _outcomes(path: Path, name: str) -> Outcomes:
    table = pq.read_table(RunFolder(path).responses(name), columns=["decoding", "problem_id", "gold", "outcome"])
    responses: dict[str, dict[Problem, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table.to_pylist():
        decided = responses[row["decoding"]][row["problem_id"], row["gold"]]
        decided += [] if row["outcome"] is None else [row["outcome"]]
    return {
        decoding: {problem: fmean(outcomes) if outcomes else None for problem, outcomes in problems.items()}
        for decoding, problems in responses.items()
    }


def _check_same_problems(name: str, before: Outcomes, after: Outcomes, second: Path) -> None:
    for decoding, problems in before.items():
        if different := set(problems) ^ set(after.get(decoding, {})):
            problem, gold = sorted(different)[0]
            raise UsageError(
                f"{name}: {second} has other problems: {len(different)} are in one of the two alone, the first "
                f"{problem!r} with the answer {gold!r}; only the same problems compare"
            )
