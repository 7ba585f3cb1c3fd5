"""`priml prm rank`: best-of-n and votes over responses that are given."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from priml.commands.prm_score import prepare
from priml.commands.session import output_folder
from priml.config.prm import PrmRankConfig
from priml.data.labelled import Response, group_by_problem
from priml.errors import DataError, RunError
from priml.evaluate.ranking import Candidate, rank, same_answers
from priml.evaluate.scored import write_scores
from priml.evaluate.tables import ranking_table
from priml.factories.device import resolve_device
from priml.factories.responses import load_responses
from priml.files import write_json
from priml.graders.extract import boxed_answer
from priml.graders.math import prime_rules
from priml.graders.math.verifier import MathVerifier
from priml.graders.pool import fan_out
from priml.report.scores import write_scores_report
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin
from priml.types import Verdict

logger = logging.getLogger(__name__)

_SHOWN = 24
"""Responses on the page."""


def run_prm_rank(cfg: PrmRankConfig) -> str:
    """Write `rank.json`, `summary.json` and `report.html`, with a PRM also `scores.parquet`; returns the table."""
    folder = RunFolder(cfg.run_dir)
    folder.check_unused()
    loaded = load_responses(cfg.data, needs_label=False)
    verifier = MathVerifier(workers=cfg.verify.workers, limit_s=cfg.verify.time_limit, rules=cfg.verify.rules)
    judged = _judged(loaded.responses, verifier)
    scoring = prepare(cfg, cfg.prm, judged, steps=cfg.steps) if cfg.prm else None
    data = {"data": loaded.digest}
    if scoring is None:
        _check_rewards(judged, cfg.data.path)
        begun_with = Origin("prm rank", cfg.seed, data, {}, resolve_device(cfg.backend).device_facts)
    else:
        begun_with = scoring.origin("prm rank", seed=cfg.seed, data=data)
    with output_folder(cfg, folder, scoring.tokenizer if scoring else None, begun_with):
        summary: dict[str, Any] = {"responses": len(judged), "data": str(cfg.data.path)}
        if scoring:
            scored = scoring.run()
            write_scores(scored, folder.scores)
            summary = scoring.summary(scored)
            judged = [replace(one.response, step_rewards=one.step_rewards) for one in scored]
        ranking = rank(_candidates(judged, verifier, like_authors=cfg.verify.rules == "authors"), seed=cfg.seed)
        write_json(folder.ranking, ranking.asdict())
        write_json(folder.summary, summary)
        write_scores_report(folder.path, shown=_SHOWN)
    if ranking.left_out:
        logger.info(f"{ranking.left_out} problems with fewer responses than most are left out")
    return ranking_table(ranking)


def _judged(responses: Sequence[Response], verifier: MathVerifier) -> list[Response]:
    """The responses with an outcome: their own label, or the verdict against the gold answer.

    Raises:
        DataError: a response has neither.
        RunError: no verdict came to a decision.
    """
    bare = next((r for r in responses if r.outcome is None and not r.problem.answer), None)
    if bare is not None:
        raise DataError(
            f"a response to {str(bare.problem.prompt)[:60]!r} has neither a label nor a gold answer to find it by; "
            "give one of the columns label or gold"
        )
    unknown = [r for r in responses if r.outcome is None]
    verdicts: list[Verdict] = fan_out(lambda r: verifier.compare(r.text, r.problem.answer), unknown)
    scores = iter([verdict.score for verdict in verdicts])
    judged = [r if r.outcome is not None else replace(r, outcome=next(scores)) for r in responses]
    decided = [r for r in judged if r.outcome is not None]
    if not decided:
        raise RunError(f"no response could be judged; the first reason given: {verdicts[0].reason}")
    if len(decided) < len(judged):
        logger.info(f"{len(judged) - len(decided)} of {len(judged)} responses could not be judged and are left out")
    return decided


def _check_rewards(responses: Sequence[Response], path: Path) -> None:
    without = sum(not r.step_rewards for r in responses)
    if without:
        raise DataError(
            f"{path}: {without} of {len(responses)} responses have no step_rewards; name a PRM that scores them "
            "(prm.model), or a scores.parquet that `priml prm score` has written"
        )


def _candidates(responses: Sequence[Response], verifier: MathVerifier, *, like_authors: bool) -> list[list[Candidate]]:
    """By problem, with equal answers numbered alike."""

    def of_problem(group: Sequence[Response]) -> list[Candidate]:
        answers = [(prime_rules.extract(r.text) if like_authors else boxed_answer(r.text)) or None for r in group]
        kinds = same_answers(answers, lambda a, b: verifier.compare(f"\\boxed{{{a}}}", b).correct is True)
        return [
            Candidate(outcome=r.outcome or 0.0, answer=kind, step_rewards=r.step_rewards or ())
            for r, kind in zip(group, kinds, strict=True)
        ]

    return fan_out(of_problem, group_by_problem(responses))
