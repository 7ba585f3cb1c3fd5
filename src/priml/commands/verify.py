"""`priml verify`: the verdict on each response of a file, and how it came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from priml.config.verify import PairConfig, VerifyConfig
from priml.data.sources import read_graded
from priml.factories.graders import build_verifier
from priml.graders.pool import fan_out
from priml.types import Problem, Verdict

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Graded:
    """One response with its verdict."""

    row: int
    problem: Problem
    response: str
    verdict: Verdict

    @property
    def layer(self) -> str:
        """What decided, or `custom` if the verifier does not say."""
        return self.verdict.layer or "custom"


def run_verify(cfg: VerifyConfig) -> Iterator[str]:
    """Lines for the terminal: one for each response in the order of the rows, then the counts."""
    rows, skipped = read_graded(cfg, cfg.path)
    for bad in skipped:
        yield f"{bad.row}\tskipped\t\t{bad.reason}"
    verifier = build_verifier(cfg.verify, [problem for _, problem, _ in rows], check=False).verifier
    verdicts = fan_out(lambda row: verifier.grade(row[1], row[2]), rows)
    graded = [Graded(*row, verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    for one in graded:
        yield describe(one)
    counts = Counter((one.verdict.label, one.verdict.reason, one.layer) for one in graded)
    yield f"{len(graded)} responses, {len(skipped)} rows skipped"
    for (label, reason, layer), count in counts.most_common():
        yield f"{count:>7}  {label}: {reason} ({layer})"


def describe(one: Graded) -> str:
    """One line: row, verdict, layer, reason, the answer and the gold."""
    found = _short(one.verdict.answer or "")
    gold = "its tests" if one.problem.kind == "code" else _short(one.problem.answer)
    return f"{one.row}\t{one.verdict.label}\t{one.layer}\t{one.verdict.reason}\t{found} | {gold}"


def explain_pair(cfg: PairConfig, response: str, gold: str) -> str:
    """What became of one response, step by step."""
    problem = Problem("pair", "", gold)
    verdict = build_verifier(cfg.verify, [problem], check=False).verifier.grade(problem, response)
    one = Graded(1, problem, response, verdict)
    answer = "none was found; it must stand in \\boxed{...}" if verdict.answer is None else verdict.answer
    lines = [f"answer   {answer}", f"gold     {gold}", f"layer    {one.layer}"]
    return "\n".join([*lines, f"verdict  {verdict.label}: {verdict.reason}"])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
