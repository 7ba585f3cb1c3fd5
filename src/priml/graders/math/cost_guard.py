"""Find answers that are short to write but take very long to evaluate: the symbolic engine must not see them."""

import re

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
