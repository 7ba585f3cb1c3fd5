"""The page of `priml prm score` and `priml prm rank`: coloured tokens, and the curves over n."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import priml
from priml.files import write_whole
from priml.report.curves import Chart, Section, Series
from priml.report.page import render
from priml.report.rollouts import Response, colour_limits, load_tokenizer, read_response
from priml.runs.folder import RunFolder
from priml.runs.schemas import AGGREGATES

_FACTS = {"prm": "PRM", "reference": "Reference", "beta": "beta", "steps": "Steps", "data": "Data"}


def holds_scores(folder: Path) -> bool:
    """Whether it is the output of `priml prm score` or `priml prm rank`."""
    files = RunFolder(folder)
    return files.summary.is_file() and (files.scores.is_file() or files.ranking.is_file())


def write_scores_report(folder: Path, *, shown: int = 40) -> Path:
    """Write `report.html` from `scores.parquet`, `summary.json` and, after a ranking, `rank.json`; return its path.

    `shown` responses are on the page: right and wrong ones to the same prompt first.
    """
    files = RunFolder(folder)
    summary = json.loads(files.summary.read_text(encoding="utf-8"))
    ranking = json.loads(files.ranking.read_text(encoding="utf-8")) if files.ranking.is_file() else None
    responses, total = _responses(files, shown)
    headline, details = _findings(summary, ranking)
    page = {
        "title": folder.resolve().name,
        "headline": headline,
        "details": details,
        "facts": [(label, str(summary[name])) for name, label in _FACTS.items() if summary.get(name) is not None],
        "notes": [],
        "accuracy": None,
        "sections": [asdict(section) for section in _sections(ranking)] if ranking else [],
        "tables": _tables(ranking) if ranking else [],
        "time": None,
        "rollouts": {
            "responses": [asdict(response) for response in responses],
            "num_responses": total,
            "num_steps": 1,
            "limits": colour_limits(responses),
            "per_step": shown,
            "is_outcome_only": False,
            "lead": f"{len(responses)} of {total:,} responses, those of one prompt together, right before wrong. "
            "Colours show what the PRM pays each token, or the step it belongs to.",
        },
        "ranges": [],
        "written": f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by priml {priml.__version__}",
    }
    write_whole(files.report, render(page))
    return files.report


# --- what it says ------------------------------------------------------------------------------------------------


def _findings(summary: Mapping[str, Any], ranking: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    if ranking is not None:
        n, best = ranking["n"], ranking["curve"][-1]
        way = max(AGGREGATES, key=lambda how: best[f"best_of/{how}"]["mean"])
        headline = (
            f"Best-of-{n} by the {way} of step rewards is right in {_percent(best[f'best_of/{way}'])}, "
            f"majority voting in {_percent(best['majority'])}"
        )
        details = [
            f"One response is right in {_percent(best['pass@1'])}, the best of {n} in {_percent(best['oracle'])} "
            f"({ranking['problems']:,} problems)."
        ]
        return headline, details
    headline = f"{summary['responses']:,} responses of {summary['steps_per_response']:.1f} steps on average"
    area = summary.get("auc")
    details = [] if area is None else [f"Their summed rewards tell right from wrong with an AUC of {area:.3f}."]
    return headline, details


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f}\N{NO-BREAK SPACE}%"


# --- curves over n -----------------------------------------------------------------------------------------------


def _sections(ranking: Mapping[str, Any]) -> list[Section]:
    usual = {"pass@1": "any response", "majority": "majority vote", "oracle": "oracle"}
    charts = (
        _chart(
            ranking,
            "The response with the highest score",
            "A response's score is the least, the mean, the sum or the last of its step rewards. The oracle picks a "
            "right one whenever there is one.",
            {f"best_of/{how}": f"best by {how}" for how in AGGREGATES} | usual,
        ),
        _chart(
            ranking,
            "The answer with the greatest weight",
            "Each response votes for its answer with sigmoid(score).",
            {f"vote/{how}": f"vote by {how}" for how in AGGREGATES} | usual,
        ),
    )
    lead = "Share of problems answered right with n responses, on average over all choices of n of them."
    return [Section("Best of n", lead, charts, ())]


def _chart(ranking: Mapping[str, Any], title: str, caption: str, methods: Mapping[str, str]) -> Chart:
    curve = ranking["curve"]
    series = (Series(label, tuple(point[method]["mean"] for point in curve)) for method, label in methods.items())
    return Chart(title, caption, "share", tuple(point["n"] for point in curve), tuple(series), axis="n =")


def _tables(ranking: Mapping[str, Any]) -> list[dict[str, Any]]:
    last, above = ranking["curve"][-1], ranking["above_majority"]
    rows = [
        [
            method,
            _percent(score),
            f"{100 * score['low']:.1f} to {100 * score['high']:.1f}",
            _signed(above[method]) if method in above else "–",
        ]
        for method, score in last.items()
        if method != "n"
    ]
    columns = ["Method", "Right", "95 % interval", "Points above majority (95 % interval)"]
    lead = f"{ranking['problems']:,} problems; differences are taken problem by problem."
    return [{"title": f"With {ranking['n']} responses", "lead": lead, "columns": columns, "rows": rows}]


def _signed(score: Mapping[str, float]) -> str:
    mean, low, high = (100 * score[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


# --- responses ---------------------------------------------------------------------------------------------------


def _responses(folder: RunFolder, shown: int) -> tuple[list[Response], int]:
    path = folder.scores
    if not path.is_file():  # a ranking of rewards from elsewhere
        return [], 0
    keys = pq.read_table(path, columns=["problem_id", "outcome"]).to_pylist()
    picked = pick(keys, shown)
    table = pq.read_table(path).take(picked)
    tokenizer = load_tokenizer(folder.tokenizer / "tokenizer.json")
    return [read_response(_as_rollout(row), 0, tokenizer) for row in table.to_pylist()], len(keys)


def pick(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Up to `count` row numbers, those of one problem together: problems with the most different outcomes first, and
    of each first its best response, then its worst, then the others."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row["problem_id"], []).append(i)

    def spread(members: Sequence[int]) -> float:
        known = [rows[i]["outcome"] for i in members if rows[i]["outcome"] is not None]
        return max(known) - min(known) if known else -1.0

    picked: list[int] = []
    for members in sorted(groups.values(), key=spread, reverse=True):
        best_first = sorted(members, key=lambda i: -(rows[i]["outcome"] or 0.0))
        ordered = best_first if len(best_first) < 3 else [best_first[0], best_first[-1], *best_first[1:-1]]
        # Two of each problem show what the PRM tells apart; more would crowd out other problems.
        picked += ordered[: max(2, count // max(1, len(groups)))]
    return picked[:count]


def _as_rollout(row: Mapping[str, Any]) -> dict[str, Any]:
    """With a verdict, and for each token the reward of its step."""
    outcome = row["outcome"]
    verdict = "unlabelled" if outcome is None else "correct" if outcome == 1 else "wrong"
    values: list[float] = []
    for reward, end in zip(row["step_rewards"], row["step_ends"], strict=True):
        values += [reward] * (end + 1 - len(values))
    values += [0.0] * (len(row["response_ids"]) - len(values))
    return {**row, "verdict": verdict, "step_rewards": values}
