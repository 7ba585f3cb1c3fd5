"""The worker process: math-verify on one pair of answers at a time. Never import this in the trainer.

Only math-verify's LaTeX front end is used. Its other one (`ExprExtractionConfig`) goes through sympy's `parse_expr`,
which evaluates text as Python.
"""

import contextlib
import logging

import math_verify
from sympy import Basic, Set
from sympy.logic.boolalg import Boolean

from priml.graders.math import prime_rules
from priml.graders.workers import Json, serve

_LATEX = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)

_EITHER = r"\pm"
# Only rounding errors of double precision are tolerated: 1.414214 is not the square root of two.
_DECIMALS = 12
_LEAST_READ = 0.5
"""Share of a text that the engine must have taken: it passes over what it does not know."""


_WARMING = (
    (r"\frac{1}{2}x", r"\frac{x}{2}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\frac{1}{2}\begin{pmatrix}2&4\\6&8\end{pmatrix}"),
    (r"x\equiv 3\pmod 4", r"3\pmod 4"),
    (r"(-\infty,-1)\cup(1,\infty)", r"x<-1\lor x>1"),
    (r"\{1,\sqrt{2},e^{\pi i}\}", r"\{1,\sqrt{2},-1\}"),
    (r"x+y=5", r"(f(x),|y|)"),
)
"""What the engine meets: without these its first matrix or set would take several times as long."""


def main(start: Json) -> None:
    """Warm the engine up, then answer requests `{rules, answer, gold}` with `{equal, read}`."""
    logging.disable()  # math-verify reports every text it cannot parse
    for answer, gold in _WARMING:
        are_equal(answer, gold)
    prime_rules.are_equal(*_WARMING[0])
    serve(start, _handle)


def _handle(request: Json) -> Json:
    if request["rules"] == "authors":
        return {"equal": prime_rules.are_equal(request["answer"], request["gold"]), "read": True}
    equal = are_equal(request["answer"], request["gold"])
    return {"equal": equal is True, "read": equal is not None}


def are_equal(answer: str, gold: str) -> bool | None:
    """Return math-verify's verdict; None: it cannot read one of the two, and the texts differ.

    Its own time limits use signals and are off; `serve` limits the time.
    """
    parsed_gold, parsed_answer = (math_verify.parse(_boxed(text), _LATEX, parsing_timeout=0) for text in (gold, answer))
    parts = [
        len(str(parsed[-1])) / len(text) for parsed, text in ((parsed_gold, gold), (parsed_answer, answer)) if parsed
    ]
    if min(parts, default=1) < _LEAST_READ:
        return None
    if math_verify.verify(parsed_gold, parsed_answer, float_rounding=_DECIMALS, timeout_seconds=None):
        return True
    if len(parsed_gold) > 1 < len(parsed_answer) and _is_same_set(parsed_gold[0], parsed_answer[0]):
        return True
    return False if len(parsed_gold) > 1 < len(parsed_answer) else None


def _is_same_set(gold: Basic, answer: Basic) -> bool:
    """Return whether inequalities in one variable, or one and a set, have the same solutions."""
    sets: list[Set] = []
    names: set[str] = set()
    for side in (gold, answer):
        if isinstance(side, Set):
            sets.append(side)
        elif isinstance(side, Boolean) and len(side.free_symbols) == 1:
            names |= {str(symbol) for symbol in side.free_symbols}
            with contextlib.suppress(NotImplementedError, TypeError, ValueError):
                sets.append(side.as_set())
    return len(sets) == 2 and len(names) == 1 and sets[0] == sets[1]


def _boxed(text: str) -> str:
    """Put the text into a box and replace double signs, which math-verify does not know everywhere."""
    if _EITHER in text:
        text = f"{text.replace(_EITHER, '+')}, {text.replace(_EITHER, '-')}"
    return rf"\boxed{{{text}}}"
