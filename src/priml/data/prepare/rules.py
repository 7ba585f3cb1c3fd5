"""Which mathematical problems are open questions with an answer that can be checked, by their text alone.

`paper` does what the authors' program does (PRIME, appendix E): it looks for letters anywhere in the problem. That
drops *improve* for a proof, *figure out* for a figure and three points A. B. C. for options. `careful` wants what it
drops to be there, and keeps blanks, which are part of the question, and answers without a digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from priml.types import Problem

RuleSet = Literal["paper", "careful"]
Rule = Callable[[str, str], bool]
"""Whether problem and answer are to be dropped."""

_POINTED_AT = re.compile(
    r"\b(?:in|from) (?:the|this) (?:\w+ )?(?:figure|diagram|picture)\b(?! of\b)"
    r"|\b(?:figure|diagram|picture|drawing|graph|map|spinner)s? (?:is |are )?"
    r"(?:shown|pictured|drawn|(?:given )?below|above|at (?:the )?(?:left|right)|(?:to|on) the (?:left|right))\b"
    r"|\bgraph of [^.]{0,60} (?:is|are) (?:shown|drawn|given) (?:below|above|here)\b"
    r"|\b(?:the|this) (?:figure|diagram) (?:shows|depicts|illustrates)\b"
)
_IMPERATIVE = re.compile(
    r"(?:^|[.!?:;,]\s*|\n\s*|\b(?:and|then|please|to)\s+)(?:prove|disprove|show)\s+that\b|^\s*prove\b"
)
_OPTION = re.compile(r"(?:^|[\s$({~])\(?(?:\\text(?:bf|rm|it)?\{|\\mathrm\{|\\textbf\{)?\(?([A-E])[.:)]")
_LETTER = re.compile(r"(?:\\text(?:bf)?\{|\\mathrm\{)?\(?([A-E])\)?\}?\.?(?:\s*,\s*\(?[A-E]\)?)*")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MOST_WORDS = 12
_DRAWING = "[asy]"


def _has_labels(text: str, answer: str) -> bool:
    return all(any(form in text for form in (f"{c}.", f"{c}:", f"({c})")) for c in "ABC")


def _has_options(text: str, answer: str) -> bool:
    """A, B, C and so on stand in the text as labels, in their order, and the answer is one of them."""
    if not _LETTER.fullmatch(answer.strip().strip("$")):
        return False
    labels = "".join(match[1] for match in _OPTION.finditer(text))
    return "ABC" in labels


def _points_at_a_figure(text: str, answer: str) -> bool:
    """At one that is not in the text: a drawing in Asymptote is."""
    if _DRAWING in text:
        return False
    return _POINTED_AT.search(text.lower()) is not None


_RULES: Mapping[RuleSet, Mapping[str, Rule]] = {
    "paper": {
        "figure": lambda text, answer: "figure" in text.lower(),
        "proof": lambda text, answer: "prove" in text.lower() or "show that" in text.lower(),
        "choice": _has_labels,
        "blank": lambda text, answer: "\\underline" in text.lower(),
        "no digit": lambda text, answer: re.search(r"\d", answer) is None,
    },
    "careful": {
        "figure": _points_at_a_figure,
        "proof": lambda text, answer: _IMPERATIVE.search(text.lower()) is not None,
        "choice": _has_options,
        "sentence": lambda text, answer: len(_WORD.findall(answer)) > _MOST_WORDS,
    },
}


def dropped_for(problem: Problem, rules: RuleSet | None, *, drawings: bool) -> str | None:
    """The first rule that drops a problem; None if it stays, as all that are not mathematics do.

    `drawings`: problems with a drawing in Asymptote may stay.
    """
    if problem.kind != "math":
        return None
    text = question(problem)
    if not drawings and _DRAWING in text:
        return "drawing"
    named = _RULES[rules] if rules else {}
    return next((name for name, drops in named.items() if drops(text, problem.answer)), None)


def question(problem: Problem) -> str:
    """The text of the last message."""
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
