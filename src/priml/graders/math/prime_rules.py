r"""The lenient rules of the grader published with the paper, for a comparison with its numbers.

Written from a description of its behaviour, its errors included: 123456 passes for
123457 (relative tolerance 1e-4), 50 for 0.5 (a hundredth or a hundredfold will do), 101_2 for 101, a bare number for a
box, while 10^6 fails for 1000000. One thing is not reproduced: the published program evaluates the model's text as
Python; here expressions are parsed as LaTeX, in a worker process.

`extract` is plain text processing. `are_equal` calls the symbolic engine and belongs in a worker.
"""

import re
from itertools import pairwise
from math import isclose, pi

_TOLERANCE = 1e-4

# What is taken as the answer

_BEFORE_ANSWER = (r"answer:", r"answer is", r"answers are")
_AFTER_ANSWER = (r"is (?:the )?answer", r"are (?:the )?answers")
_BEFORE_VALUE = (r"be\s", r"is\s", r"are\s", r"=", r":\s", r"get\s")


def extract(response: str) -> str:
    """Return the part of the response that is graded. A box is preferred but not required."""
    text = response
    for marker in _BEFORE_ANSWER:
        text = re.split(marker, text, flags=re.IGNORECASE)[-1]
    for marker in _AFTER_ANSWER:
        text = re.split(rf"\s{marker}", text, maxsplit=1, flags=re.IGNORECASE)[0]
    text = _last_box(text)
    text = text.rpartition(". ")[0] if ". " in text else text
    for marker in _BEFORE_VALUE:
        text = re.split(marker, text)[-1]
    return text.strip()


def _last_box(text: str) -> str:
    """Return the content of the last `\\boxed` or `\\fbox`, or the text itself if there is no complete one."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    opening = text.find("{", start)
    if start < 0 or opening < 0:
        return text
    depth = 0
    for brace in re.finditer(r"[{}]", text[opening:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[opening + 1 : opening + brace.start()]
    return text


# What counts as equal


def are_equal(answer: str, gold: str) -> bool:
    """Return whether one of the two cascades accepts the answer."""
    return _by_spelling(answer, gold) or _by_value(answer, gold)


def _by_spelling(answer: str, gold: str) -> bool:
    """First cascade: compare strings in two normal forms, then the elements by an exact symbolic test."""
    answer, gold = (_rewrite(text.strip(), _MATH_STYLE) for text in (answer, gold))
    if answer == gold:
        return True
    answer, gold = (_rewrite(text, _PLAIN_STYLE).strip().lower() for text in (answer, gold))
    if not answer or not gold:
        return False
    if answer == gold:
        return True
    answer_parts, gold_parts = _elements(answer), _elements(gold)
    if len(answer_parts) > 1 and (answer[0], answer[-1]) != (gold[0], gold[-1]):
        return False
    return len(answer_parts) == len(gold_parts) and all(map(_element_equal, answer_parts, gold_parts))


def _element_equal(answer: str, gold: str) -> bool:
    if answer == gold:
        return True
    if all(re.fullmatch(r"-?\d+/\d+", side) for side in (answer, gold)):
        return False
    if re.fullmatch(r"-?\d+", answer) or re.fullmatch(r"-?\d+", gold):
        return False
    letters = set(re.findall(r"[a-z]", re.sub(r"sqrt|frac|\\[a-z]+", "", answer)))
    if len(letters) > 2 or re.search(r"\^[{(]|\^\d\d", answer + " " + gold):
        return False
    return _is_symbolically_equal(answer, gold)


def _by_value(answer: str, gold: str) -> bool:
    """Second cascade: numbers within a tolerance and up to a factor of 100, then strings, elements, formulas."""
    answer, gold = _stripped(answer), _stripped(gold)
    if answer.lower() == gold.lower():
        return True
    answer_number, gold_number = _number(answer), _number(gold)
    if answer_number is not None and gold_number is not None:
        candidates = (gold_number / 100, gold_number, gold_number * 100)
        return any(isclose(answer_number, candidate, rel_tol=_TOLERANCE) for candidate in candidates)
    if not answer or not gold or (answer[0] in "([" and gold[0] in "([" and answer[0] != gold[0]):
        return False
    if _BRACKETS.sub("", answer).lower() == _BRACKETS.sub("", gold).lower():
        return True
    answer_parts, gold_parts = _elements(answer), _elements(gold)
    if len(answer_parts) > 1 or len(gold_parts) > 1:
        return len(answer_parts) == len(gold_parts) and all(map(_by_value, answer_parts, gold_parts))
    answer_rows, gold_rows = _matrix(answer), _matrix(gold)
    if answer_rows is not None and gold_rows is not None:
        return len(answer_rows) == len(gold_rows) and all(map(_by_value, answer_rows, gold_rows))
    return _is_symbolically_equal(answer, gold)


# Spelling


def _rewrite(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


_MATH_STYLE = (
    (r"\n|\\!|\\left|\\right|\^\{?\\circ\}?|\\\$|\\?%|\\,", ""),
    (r"\\\\", r"\\"),
    (r"\\[td]frac", r"\\frac"),
    (r"\\text\{ .*$", ""),  # a unit: text that begins with a blank
    (r"(?<![\d.])\.(?=\d)", "0."),
    (r"^\w{1,2}\s*=", ""),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\s", ""),
    (r"\\frac(\d)(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac(\d)\{", r"\\frac{\1}{"),
    (r"^0\.5$", r"\\frac{1}{2}"),
    (r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}"),
)
_PLAIN_STYLE = (
    (r"\\(?:text|mbox|mathrm)\{([^{}]*)\}", r"\1"),
    (r"[%$]", ""),
    (r"million", "*10^6"),
    (r"billion", "*10^9"),
    (r"trillion", "*10^12"),
    (r"\b(?:degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard)(?:e?s)?\b", ""),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"(?<=\d)\\frac\{(\d+)\}\{(\d+)\}", r"+\1/\2"),
    (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2"),
    (r"[{}]|\.0*$", ""),
)


def _stripped(text: str) -> str:
    """Remove percent, dollar and number base, which these rules ignore."""
    text = re.sub(r"\\?[%$]", "", _rewrite(text.strip(), _MATH_STYLE[:7]))
    return re.sub(r"_\{?\d+\}?$", "", text).strip()


def _elements(text: str) -> list[str]:
    inside = text[1:-1] if text[:1] in ("(", "[") and text[-1:] in (")", "]") else text
    cuts, depth = [-1], 0
    for at, character in enumerate(inside):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            cuts.append(at)
    cuts.append(len(inside))
    return [inside[start + 1 : end].strip() for start, end in pairwise(cuts)] if len(cuts) > 2 else [text]


def _matrix(text: str) -> list[str] | None:
    """The entries, row by row; None if the text is no matrix."""
    found = re.fullmatch(r"\\begin\{([pb]matrix)\}(.*)\\end\{\1\}", text, re.DOTALL)
    if found is None:
        return None
    return [entry.strip() for entry in re.split(r"\\+(?![a-z])|&", found[2]) if entry.strip()]


# Value

_BRACKETS = re.compile(r"[{}()\[\]\s]")
_NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_TIMES_PI = re.compile(rf"({_NUMBER.pattern})?\s*\*?\s*\\pi")


def _number(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text.replace(",", ""))
    if times := _TIMES_PI.fullmatch(text):
        return float(times[1].replace(",", "") if times[1] else 1) * pi
    return None


def _is_symbolically_equal(answer: str, gold: str) -> bool:
    """Return whether the difference is zero, or within the tolerance when it is a number."""
    # The published parser reads `10^6` as Python's exclusive or, so powers of plain numbers are never right.
    if any(re.fullmatch(r"[\d\s.+*/()^-]*\d\^[\d\s.+*/()^-]*", side) for side in (answer, gold)):
        return False
    import math_verify
    import sympy

    latex = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)
    parsed = [math_verify.parse(rf"\boxed{{{side}}}", latex, parsing_timeout=0) for side in (answer, gold)]
    if not all(parsed) or not all(isinstance(side[0], sympy.Expr) for side in parsed):
        return False
    difference = sympy.simplify(parsed[0][0].doit() - parsed[1][0].doit())
    if difference == 0:
        return True
    if not difference.is_number or not difference.is_real:
        return False
    return isclose(float(parsed[0][0]), float(parsed[1][0]), rel_tol=_TOLERANCE)
