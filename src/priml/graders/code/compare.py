"""Compare an output with the expected one: text that was printed, values that came back. Calls no stranger's object.

Numbers: the difference to an expected whole number may be at most 1e-6, to an expected decimal number x at most
1e-6 * max(1, |x|). Two whole numbers must be equal. Everything else is exact.
"""

import math
import re
from collections import deque
from collections.abc import Collection, Mapping
from fractions import Fraction

from priml.graders.code.wire import PLAIN, Json, Refused

TOLERANCE = 1e-6

_BLANKS = re.compile(r"([ \t]+)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_WHOLE = re.compile(r"[+-]?\d+")
_MAX_DIGITS = 400


def same_output(printed: str, expected: str) -> bool:
    """Return whether the text is the expected one. Blanks at the ends of lines and empty lines at the end do not count.

    White space before the expected text does not count either. Otherwise everything counts, blanks too. A word that is
    a number may be written as another number that is close enough (see above), if one of the two is not a whole number.
    NaN and infinity are words.
    """
    leads = expected[:1].isspace()  # some data sets have an empty line there that no statement asks for
    got, wanted = (_lines(text.lstrip() if leads else text) for text in (printed, expected))
    if len(got) != len(wanted):
        return False
    for got_line, wanted_line in zip(got, wanted, strict=True):
        if got_line == wanted_line:
            continue
        got_words, wanted_words = _BLANKS.split(got_line), _BLANKS.split(wanted_line)
        if len(got_words) != len(wanted_words) or not all(map(_same_word, got_words, wanted_words)):
            return False
    return True


def same_tokens(printed: str, expected: str) -> bool:
    """Return whether the words are the expected ones, whatever white space is between them (numbers as above)."""
    got, wanted = printed.split(), expected.split()
    return len(got) == len(wanted) and all(map(_same_word, got, wanted))


def same_value(packed: Json, expected: object) -> bool:
    """Return whether what came back, as `wire` packs it, is the expected value.

    As Python's `==`, with these differences: numbers as above; NaN is NaN; because JSON has only lists and text keys, a
    tuple may stand for an expected list, and a number for the expected text key that names it.
    """
    if type(packed) is not dict or packed.keys() != {"value"}:
        return False  # an instance of a program's class, or no packed value at all
    try:
        return _same(packed["value"], expected)
    except (Refused, TypeError, ValueError, OverflowError, RecursionError):
        return False  # a message that is none: the program wrote it itself


def authors_same_output(printed: str, expected: str) -> bool:
    """Return whether the lenient comparison of the authors' program accepts the text.

    It compares stripped lines, then decimal numbers, then sets of sets of words: order and repetition of lines, and of
    words in a line, do not matter.
    """
    if printed.strip() == expected.strip():
        return True
    got, wanted = ([line.strip() for line in text.split("\n") if line.strip()] for text in (printed, expected))
    if got == wanted:
        return True
    numbers, wanted_numbers = _floats(got), _floats(wanted)
    if numbers is not None and wanted_numbers is not None and len(numbers) == len(wanted_numbers):
        close = (abs(a - b) <= 1e-8 + 1e-5 * abs(b) for a, b in zip(numbers, wanted_numbers, strict=True))
        if all(close):
            return True
    rounded = _rounded_sets(wanted)
    return _word_sets(got) == _word_sets(wanted) or (rounded is not None and _rounded_sets(got) == rounded)


def same_item(packed: Json, expected: object) -> bool:
    """Compare like the authors' program and APPS: the first item of the expected list is right, too."""
    return same_value(packed, expected) or (
        isinstance(expected, list | tuple) and len(expected) > 0 and same_value(packed, expected[0])
    )


# Text


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_word(got: str, wanted: str) -> bool:
    if got == wanted:
        return True
    a, b = _number(got), _number(wanted)
    if a is None or b is None or (isinstance(a, int) and isinstance(b, int)):
        return False  # 007 is not 7
    return _same_number(a, b)


def _number(word: str) -> int | float | None:
    if len(word) > _MAX_DIGITS or not _NUMBER.fullmatch(word):
        return None
    number = int(word) if _WHOLE.fullmatch(word) else float(word)
    return number if math.isfinite(number) else None


def _floats(lines: list[str]) -> list[float] | None:
    try:
        return [float(line) for line in lines]
    except ValueError:
        return None


def _word_sets(lines: list[str]) -> set[frozenset[str]]:
    return {frozenset(line.split()) for line in lines}


def _rounded_sets(lines: list[str]) -> set[frozenset[float]] | None:
    try:
        return {frozenset(round(float(word), 3) for word in line.split()) for line in lines}
    except (ValueError, OverflowError):
        return None


# Values


def _same(packed: Json, expected: object) -> bool:
    match expected:
        case bool():  # True == 1, as in Python
            return _is_number(packed) and packed == expected
        case None | str():
            return type(packed) is type(expected) and packed == expected
        case int() | float():
            return _is_number(packed) and _same_number(_whole(packed), expected)
        case list() if isinstance(packed, dict) and packed.keys() == {"tuple"}:
            return _same_items(packed["tuple"], expected)
        case list():
            return _same_items(packed, expected)
        case dict():
            return _same_mapping(packed, expected)
        case tuple() | deque():
            return _has_kind(packed, type(expected).__name__) and _same_items(packed[type(expected).__name__], expected)
        case set() | frozenset():
            return _same_set(packed, expected)
        case bytes():
            return _has_kind(packed, "bytes") and packed["bytes"] == expected.hex()
        case complex():
            return _has_kind(packed, "complex") and packed["complex"] == [expected.real, expected.imag]
    return False


def _same_items(packed: Json, expected: Collection[object]) -> bool:
    return type(packed) is list and len(packed) == len(expected) and all(map(_same, packed, expected))


def _same_mapping(packed: Json, expected: Mapping[object, object]) -> bool:
    content = next((packed[kind] for kind in ("dict", "Counter", "OrderedDict") if _has_kind(packed, kind)), None)
    if type(content) is not list or len(content) != len(expected):
        return False
    got = {_canonical(key): value for key, value in content}
    return len(got) == len(expected) and all(
        any(key in got and _same(got[key], value) for key in _spellings(key)) for key, value in expected.items()
    )


def _spellings(key: object) -> list[str]:
    """Return the canonical forms of an expected key: JSON data have `{"1": ...}` for `{1: ...}`."""
    number = _number(key) if isinstance(key, str) else None
    return [_canonical(PLAIN.pack(key)["value"])] + ([] if number is None else [_canonical(number)])


def _same_set(packed: Json, expected: set[object] | frozenset[object]) -> bool:
    content = next((packed[kind] for kind in ("set", "frozenset") if _has_kind(packed, kind)), None)
    if type(content) is not list or len(content) != len(expected):
        return False
    return {_canonical(item) for item in content} == {_canonical(PLAIN.pack(item)["value"]) for item in expected}


def _canonical(packed: Json) -> str:
    """Return equal texts for equal values. A stranger could choose numbers that all collide in a hash table."""
    if _is_number(packed):
        number = _whole(packed)
        return hex(int(number)) if isinstance(number, int) or number.is_integer() else repr(number)
    match packed:
        case str() | None:
            return repr(packed)
        case list():
            return f"[{','.join(map(_canonical, packed))}]"
        case {"set": list() as items} | {"frozenset": list() as items}:
            return f"{{{','.join(sorted(map(_canonical, items)))}}}"
        case dict() if len(packed) == 1:
            ((kind, content),) = packed.items()
            return f"{kind}:{_canonical(content)}"
    raise Refused("not a packed value")


def _has_kind(packed: Json, kind: str) -> bool:
    return type(packed) is dict and packed.keys() == {kind}


def _is_number(packed: Json) -> bool:
    return isinstance(packed, bool | int | float) or _has_kind(packed, "int")


def _whole(packed: Json) -> int | float:
    return int(packed["int"], 16) if isinstance(packed, dict) else packed


def _same_number(got: int | float, wanted: int | float) -> bool:
    if got == wanted:
        return True
    if isinstance(got, int) and isinstance(wanted, int):
        return False
    if not (math.isfinite(got) and math.isfinite(wanted)):
        return math.isnan(got) and math.isnan(wanted)
    scale = 1.0 if isinstance(wanted, int) else max(1.0, abs(wanted))
    return abs(Fraction(got) - Fraction(wanted)) <= TOLERANCE * Fraction(scale)
