"""What the symbolic engine must not see: answers that take very long to evaluate, and answers that it reads in part."""

import re

from priml.graders.math.normalize import normalize, to_latex
from priml.graders.math.read import is_bare_name

_MORE_THAN_A_FORMULA = re.compile(
    r"[=;…]|\.{3}|\\(?:[lc]?dots[a-z]?|approx|equiv|q?quad|lim|forall|exists|rightarrow|to|text|mbox|Rightarrow|implies)"
    r"(?![A-Za-z])|(?<![A-Za-z\\{])[A-Za-z]{3,}|\{[dr]?cases"
)
"""Equations, sentences, dots: of these the engine takes the formulas that it knows and passes over the rest."""


def formulas_to_compare(answer: str, gold: str) -> tuple[str, str] | None:
    """Return the formulas of both sides without a name that both or only one has; None if there is more than a formula.

    The engine takes any formula out of a text, so it may see nothing else.
    """
    sides = [_in_parts(to_latex(side)) for side in (answer, gold)]
    names = {normalize(name) for name, sign, _ in sides if sign}
    formulas = [formula for _, _, formula in sides]
    is_named_alike = len(names) == 1 and (all(sign for _, sign, _ in sides) or all(map(is_bare_name, names)))
    if (names and not is_named_alike) or any(
        _MORE_THAN_A_FORMULA.search(_LOWER_BOUND.sub("", formula)) for formula in formulas
    ):
        return None
    return formulas[0], formulas[1]


def _in_parts(text: str) -> tuple[str, str, str]:
    r"""Return name, sign and value of a formula; the sign in \sum_{k=1} is none."""
    hidden = _LOWER_BOUND.sub(lambda bound: bound[0].replace("=", "\0"), text)
    name, sign, value = hidden.rpartition("=")
    return name.replace("\0", "="), sign, value.replace("\0", "=") if sign else text


_LOWER_BOUND = re.compile(r"_\s*\{[^{}]*\}")

_EXPENSIVE = re.compile(
    r"\^\s*\{?[^{}^]{0,20}[0-9]{2}"  # an exponent of two digits
    r"|\^\s*\w+\s*\^|\^\s*\{?[(-]*[0-9.]+\s*\^"  # a power of a power
    r"|(?:_[^_]{0,4}){6}|(?:(?:[<>=]|\\in(?![A-Za-z]))\s*\w?\s*){5}"  # no mathematics at all
    r"|[0-9]{3}\s*\)*\s*!|!\s*[)}]*\s*!|[)}]\s*!"  # factorials of hundreds, of factorials, of expressions
    r"|[0-9]{40}"
)
_OPERATORS = re.compile(r"\\(?:int|iint|iiint|oint|sum|prod|lim|limsup|liminf|bigcup|bigcap)(?![A-Za-z])")
_MAX_OPERATORS = 2
_BOUND = re.compile(r"\\(?:sum|prod)[^A-Za-z]*_?\{?[^{}]*\}?\s*\^\s*\{?[^{}]{0,20}(?:[0-9]{4}|[0-9]\s*\^|!)")
_MAX_COMMANDS = 50
_MAX_ENVIRONMENTS = 4
_MAX_DEPTH = 30
_MAX_TOWER = 2


def is_expensive(answer: str, gold: str) -> bool:
    """Return whether an answer may be too expensive: power towers, huge factorials, long sums, deep nesting.

    Integrals, sums, products and limits are allowed only when the gold answer has some, too; elsewhere the response
    leaves its work to the grader. An expensive answer that is not found here runs into the time limit.
    """
    if _EXPENSIVE.search(answer) or _BOUND.search(answer):
        return True
    if answer.count("\\") > _MAX_COMMANDS or answer.count("\\begin") > _MAX_ENVIRONMENTS:
        return True
    operators = len(_OPERATORS.findall(answer))
    return operators > (_MAX_OPERATORS if _OPERATORS.search(gold) else 0) or _is_deep(answer)


def _is_deep(text: str) -> bool:
    """Return whether brackets or exponents are nested too deeply."""
    in_exponent: list[bool] = []  # per open bracket
    previous = ""
    for character in text:
        if character in "([{":
            in_exponent.append(previous == "^")
        elif character in ")]}" and in_exponent:
            in_exponent.pop()
        elif character == "^" and sum(in_exponent) >= _MAX_TOWER:
            return True
        if len(in_exponent) > _MAX_DEPTH:
            return True
        if not character.isspace():
            previous = character
    return False
