"""Grade a sample of golds against themselves and against changed copies, before a run spends hours on them.

A set is refused if its golds cannot tell a right response from a wrong one: tests that test nothing, a column of
solutions in the place of answers, the wrong verifier.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence

from priml.config import graders as config
from priml.errors import DataError, UsageError
from priml.graders.base import Verifier
from priml.types import Problem

logger = logging.getLogger(__name__)

SAMPLE = 8
"""Problems of each verifier that are looked at."""
FUNCTION_SAMPLE = 3
"""Problems with which a function of the user's own is tried: a call may cost."""
_NONSENSE = "I do not know, perhaps 17 + x, or a green horse."
MAX_WORDS = 12
"""A mathematical answer of more words is a sentence, which no response repeats."""

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SOLUTIONS = ("canonical_solution", "solution", "solutions", "code")
_ASKS_FOR_A_LINE = re.compile(r"form:?\s*\"?Answer:|Answer:\s*\$?Answer", re.IGNORECASE)


def check_golds(problems: Sequence[Problem], settings: config.SingleVerifier, verifier: Verifier) -> None:
    """Raise `DataError` if most of some problems that this verifier grades have golds that tell nothing apart.

    A function of the user's own is only called: what is right for it, nobody else knows.

    Raises:
        UsageError: the function failed in every call.
    """
    if isinstance(settings, config.CustomVerifier):
        _try_function(problems, settings.function, verifier)
        return
    sample = problems[:: max(1, len(problems) // SAMPLE)][:SAMPLE]
    failures = [(problem, found) for problem in sample if (found := _failure(problem, settings, verifier))]
    if 2 * len(failures) > len(sample):
        problem, found = failures[0]
        raise DataError(
            f"the golds of {len(failures)} of {len(sample)} sampled problems cannot tell right from wrong. The first: "
            f"problem {problem.id!r} (source {problem.source!r}): {found}. Check `columns` and the kind under "
            "`verify`, or leave these problems out"
        )
    if isinstance(settings, config.MathVerifier) and not settings.bare_answers:
        asking = [problem for problem in sample if _ASKS_FOR_A_LINE.search(_question(problem))]
        if 2 * len(asking) > len(sample):
            logger.warning(
                f"problem {asking[0].id!r} and others ask for a last line `Answer: ...`, which counts as no answer "
                "without a box; set verify.bare_answers: true, or ask for a box in data.prompt.suffix"
            )


def _try_function(problems: Sequence[Problem], name: str, verifier: Verifier) -> None:
    """Call the function with the gold answers of a few problems and with nonsense: it may be wrong in each call."""
    sample = problems[:: max(1, len(problems) // FUNCTION_SAMPLE)][:FUNCTION_SAMPLE]
    golds = [verifier.grade(problem, f"\\boxed{{{problem.answer}}}") for problem in sample if problem.answer]
    others = [verifier.grade(problem, _NONSENSE) for problem in sample]
    if all(verdict.correct is None for verdict in [*golds, *others]):
        raise UsageError(
            f"verify.function: {name} judged none of {len(golds) + len(others)} trial responses: {others[0].reason}. "
            "It is called as function(problem, response), and returns a bool, a score from 0 to 1, or a Verdict"
        )
    if all(verdict.score for verdict in others):
        logger.warning(f"{name} pays nonsense: the response {_NONSENSE!r} got {others[0].score:g}; is this meant?")
    elif golds and not any(verdict.score for verdict in golds):
        reason = f" ({golds[0].reason})" if golds[0].reason else ""
        logger.warning(
            f"{name} pays nothing for a response that is the gold answer in a box: problem {sample[0].id!r}, response "
            f"'\\boxed{{{sample[0].answer[:60]}}}', {golds[0].label}{reason}. If this is not meant: problem.answer is "
            "always text, also where the row has a number"
        )


def _failure(problem: Problem, settings: config.SingleVerifier, verifier: Verifier) -> str | None:
    if isinstance(settings, config.MathVerifier) and len(words := _WORD.findall(problem.answer)) > MAX_WORDS:
        return f"its answer is a text of {len(words)} words, needed a mathematical answer: {problem.answer[:60]!r}"
    own, changed = _responses(problem, settings)
    verdict = verifier.grade(problem, changed)
    if verdict.correct or verdict.reason == "broken tests":
        return f"a changed gold is graded {verdict.label} ({verdict.reason}): {changed[-60:]!r}"
    verdict = None if own is None else verifier.grade(problem, own)
    if verdict is not None and verdict.correct is False:
        return f"its own gold is graded wrong ({verdict.reason})"
    return None


def _responses(problem: Problem, settings: config.SingleVerifier) -> tuple[str | None, str]:
    """Return a response that is right, if the row has one, and one that is wrong."""
    if isinstance(settings, config.CodeVerifier):
        solution = known_solution(problem)
        return solution and f"```python\n{solution}\n```", "```python\npass\n```"
    whole = isinstance(settings, config.ExactVerifier) and settings.place == "whole"
    form: Callable[[str], str] = str if whole else "\\boxed{{{}}}".format
    return form(problem.answer), form(_changed(problem.answer, settings))


def known_solution(problem: Problem) -> str | None:
    """The program that a row of code has as its solution, the first of several."""
    for name in _SOLUTIONS:
        found = problem.meta.get(name)
        if isinstance(found, str) and found.lstrip().startswith("["):
            try:
                found = json.loads(found)
            except ValueError:
                return None
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, str) and found.strip():
            return found.replace("```python", "").replace("```", "")
    return None


def _changed(answer: str, settings: config.SingleVerifier) -> str:
    """Return an answer that is not the given one: another option, or another first digit, or more text."""
    if isinstance(settings, config.ChoiceVerifier):
        return "B" if "A" in answer.upper() else "A"
    changed, count = re.subn(r"\d", lambda digit: str(int(digit[0]) % 9 + 1), answer, count=1)
    return changed if count else f"{answer}+7"


def _question(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
