"""Parse an answer that has no parts: a number with its unit, a formula, a number in another base, words."""

from __future__ import annotations

import re
from fractions import Fraction

from priml.graders.math.answer_types import (
    Ambiguous,
    BasedNumeral,
    Ordered,
    Quantity,
    Unordered,
    Unparsed,
    Value,
    Words,
)
from priml.graders.math.ast import Apply, Number, expand_signs
from priml.graders.math.numerals import parse_rational
from priml.graders.math.parser import parse
from priml.graders.math.split import split
from priml.graders.math.units import split_unit

GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_BASED = re.compile(r"(-?[0-9A-F]+(?:\.[0-9A-F]+)?)_\{?([0-9]{1,2})\}?")
_RATIO = re.compile(r"[0-9.]+(?::[0-9.]+)+")
_MATHEMATICAL = re.compile(r"[A-Za-z0-9\\{}()\[\]|+*/^_=<>!.,;:%&'$ -]*")
_NO_FORMULA = re.compile(r"[0-9] [0-9]|:")
_OF_ANGLES = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_NO_ANSWER = re.compile(r"≠|\\(?:neg|lnot|not|nexists|notin|[lc]?dots[cb]?|square|Box)(?![A-Za-z])|\.\.|\?")
"""Denials, open ends and blanks."""
_LONG_WORD = re.compile(r"[A-Za-z]{4}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SYMBOL = re.compile(r"\\mathbb\{[A-Z]\}(?:\^[+*-])?")


def read_atom(text: str) -> Value:
    """Parse a text that has no separator or relation sign outside brackets, except commas for thousands."""
    if (based := _BASED.fullmatch(text)) and _is_numeral(based[1], int(based[2])):
        return BasedNumeral(based[1], int(based[2]))
    quantity = _read_quantity(text)
    if quantity is not None:
        values = tuple(Quantity(e, quantity.unit, quantity.is_percent) for e in expand_signs(quantity.expression))
        single: Value = values[0] if len(values) == 1 else Unordered(values, in_braces=False)
        if GROUPED.search(text) and len(parts := split(text, ",")) > 1:
            listed = tuple(_read_quantity(part) or Unparsed(part) for part in parts)
            return either((single, Unordered(listed, in_braces=False)))
        return single
    if _RATIO.fullmatch(text) and ":0" not in text:
        return Ordered("::", tuple(_read_quantity(part) or Unparsed(part) for part in text.split(":")))
    return read_words(text)


def _read_quantity(text: str) -> Quantity | None:
    unit, factor = "", Fraction(1)
    if (measured := split_unit(text)) and not (measured.unit == "degree" and _OF_ANGLES.search(measured.value)):
        text, unit, factor = measured.value, measured.unit, measured.factor
    is_percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    number = parse_rational(text)
    expression = parse(text) if number is None else Number(number)
    if expression is None:
        return None
    if factor != 1:
        expression = Apply("*", (expression, Number(factor)))
    return Quantity(expression, unit, is_percent)


def read_words(text: str) -> Value:
    """Return `Words` for text and `Unparsed` for a formula that the parser does not know."""
    plain = _TEXT.sub(r"\1", text)
    is_text = (
        _TEXT.search(text) is not None
        or _SYMBOL.fullmatch(text) is not None
        or _LONG_WORD.search(_COMMAND.sub("", plain)) is not None
        or _MATHEMATICAL.fullmatch(plain) is None
        or _NO_ANSWER.search(text) is not None
        or _NO_FORMULA.search(plain) is not None
        or not re.search(r"[A-Za-z\\]", plain)
    )
    if not is_text:
        return Unparsed(text)
    return Words(text_key(text), is_pure=not re.search(r"[\\=+*/^<>]", plain))


def text_key(text: str) -> str:
    """Return the text for comparisons: lower case, without spaces, full stops and brackets."""
    return re.sub(r"[\s.,;\"{}()~]", "", _TEXT.sub(r"\1", text)).casefold()


def _is_numeral(digits: str, base: int) -> bool:
    return 2 <= base <= 16 and len(digits) <= 100 and all(int(d, 16) < base for d in digits if d not in "-.")


def either(readings: tuple[Value, ...]) -> Value:
    """Return the only reading, or `Ambiguous` for several."""
    return readings[0] if len(readings) == 1 else Ambiguous(readings)
