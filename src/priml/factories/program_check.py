"""Whether the tests of a problem of code tell right programs from wrong ones: they are run, in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence

from priml.config.graders import CodeVerifier
from priml.data.prepare.decisions import KEPT, Decision, dropped
from priml.factories.gold_check import known_solution
from priml.factories.graders import build_verifier
from priml.graders.base import Verifier
from priml.graders.pool import fan_out
from priml.types import Problem

_CONSTANTS = ("None", "0", "True", "[]")
_PRINTED = ("", "0", "YES")


def check_programs(problems: Sequence[Problem], settings: CodeVerifier) -> list[Decision]:
    """The decision of each problem; those that are not code stay.

    A row goes if its own solution fails its tests, or if a stub passes them: a function that always returns the same,
    a program that prints the same whatever it reads.
    """
    code = [problem for problem in problems if problem.kind == "code"]
    if not code:
        return [KEPT] * len(problems)
    verifier = build_verifier(settings, code, check=False).verifier
    found = iter(fan_out(lambda problem: _decision(problem, verifier), code))
    return [next(found) if problem.kind == "code" else KEPT for problem in problems]


def _decision(problem: Problem, verifier: Verifier) -> Decision:
    for stub in stubs(problem):
        if verifier.grade(problem, _fenced(stub)).correct:
            return dropped("a stub passes its tests", stub)
    solution = known_solution(problem)
    if solution is None:
        return Decision(reason="no known solution")
    verdict = verifier.grade(problem, _fenced(solution))
    if verdict.correct is None:
        return Decision(reason="undecided", other=verdict.reason)  # ours, not the row's
    return KEPT if verdict.correct else dropped("its own solution fails", verdict.reason, verdict.score)


def stubs(problem: Problem) -> list[str]:
    """Programs that cannot be right."""
    assert problem.tests is not None, "a problem of code has tests"
    if problem.tests.kind == "stdin":
        return [f"print({text!r})" for text in _PRINTED]
    *holder, name = (problem.tests.entry_point or "").rsplit(".", maxsplit=1)
    if not name.isidentifier():
        return ["pass"]
    functions = [f"def {name}(*args, **kwargs):\n    return {value}" for value in _CONSTANTS]
    if not holder:
        return functions
    return ["class Solution:\n    " + text.replace("\n", "\n    ") for text in functions]


def _fenced(program: str) -> str:
    return f"```python\n{program}\n```"
