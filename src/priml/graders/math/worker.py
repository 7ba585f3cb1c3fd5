"""The worker process: math-verify on one pair of answers at a time. Never import this in the trainer.

Only math-verify's LaTeX front end is used. Its other one (`ExprExtractionConfig`) goes through sympy's `parse_expr`,
which evaluates text as Python.
"""

import logging

import math_verify

from priml.graders.math import prime_rules
from priml.graders.workers import Json, serve

_LATEX = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)

_EITHER = r"\pm"
# Only rounding errors of double precision are tolerated: 1.414214 is not the square root of two.
_DECIMALS = 12


def main(start: Json) -> None:
    """Warm the engine up, then answer requests `{rules, answer, gold}` with `{equal}`."""
    logging.disable()  # math-verify reports every text it cannot parse
    for rule in (are_equal, prime_rules.are_equal):
        rule(r"\frac{1}{2}x", r"\frac{x}{2}")
    serve(start, _handle)


def _handle(request: Json) -> Json:
    rule = prime_rules.are_equal if request["rules"] == "authors" else are_equal
    return {"equal": rule(request["answer"], request["gold"])}


def are_equal(answer: str, gold: str) -> bool:
    """Return math-verify's verdict. Its own time limits use signals and are off; `serve` limits the time."""
    parsed_gold, parsed_answer = (math_verify.parse(_boxed(text), _LATEX, parsing_timeout=0) for text in (gold, answer))
    return math_verify.verify(parsed_gold, parsed_answer, float_rounding=_DECIMALS, timeout_seconds=None)


def _boxed(text: str) -> str:
    """Put the text into a box and replace double signs, which math-verify does not know everywhere."""
    if _EITHER in text:
        text = f"{text.replace(_EITHER, '+')}, {text.replace(_EITHER, '-')}"
    return rf"\boxed{{{text}}}"
