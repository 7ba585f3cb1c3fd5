"""Mathematical answers as text: finding the last box, and comparing two answers that are plain values.

Everything here is linear-time text work on exact numbers: no evaluation, no symbolic engine. `same_value` settles the
common cases in microseconds and says so when it cannot; what it says is exact (no tolerance), never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER = 300
"""Longest answer, in characters, that is compared at all."""

_MAX_EXPONENT = 60
_MAX_NUMBER = 100


# The last box


_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def boxed_answer(response: str) -> str | None:
    r"""What stands in the last complete `\boxed{...}` (or `\fbox`), None without one; of nested boxes, the outermost.

    A box inside the thinking part does not count: only the text after the last `</think>` is read, and of that nothing
    after a `<think>` that was never closed.
    """
    text = response.rpartition("</think>")[2].partition("<think>")[0]
    first = min((at for at in (text.find(r"\boxed"), text.find(r"\fbox")) if at >= 0), default=-1)
    if first < 0:
        return None
    last: tuple[int, int] | None = None
    open_boxes: list[int | None] = []  # per open brace: where its box's content starts, None for an ordinary brace
    for token in _BRACES.finditer(text, first):
        match token[0]:
            case "{":
                open_boxes.append(None)
            case "}":
                start = open_boxes.pop() if open_boxes else None
                if start is not None:
                    last = (start, token.start())
            case escaped if len(escaped) > 2:
                open_boxes.append(token.end())
    return None if last is None else text[slice(*last)].strip()


# Normal form


_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010\u2011\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **{wide: chr(ord(wide) - 0xFEE0) for wide in map(chr, range(0xFF01, 0xFF5F)) if wide != "\uff0d"},
        "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
        "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "、": ",",
    }
)  # fmt: skip
_FRACTIONS = {
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}",
    "⅖": r"\frac{2}{5}",
    "⅗": r"\frac{3}{5}",
    "⅘": r"\frac{4}{5}",
    "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}",
    "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}",
    "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def to_latex(text: str) -> str:
    """The Unicode forms a reader accepts, written in LaTeX: roots, powers, fractions, signs, wide characters."""
    if text.isascii():
        return text
    text = re.sub("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]", lambda m: _FRACTIONS[m[0]], text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-zπ]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    return text.replace("√", r"\sqrt").translate(_CHARACTERS).strip()


_WRAPPER = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname)"
_WHOLE_WRAPPER = re.compile(rf"{_WRAPPER}\s*\{{([^{{}}]*)\}}")
_AND_OR = r"(?:,\s*)?(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
        (r"\\(?:boxed|fbox)\s*(?=\{)", ""),
        (r"\\\$|\$|\\[()]|\\\[|\\\]|\\!\s*", ""),
        (r"\{,\}", ","),
        (r"\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\s*\\(?:leqslant|leq|le)(?![A-Za-z])", "<="),
        (r"\s*\\(?:geqslant|geq|ge)(?![A-Za-z])", ">="),
        (r"\s*\\lt(?![A-Za-z])", "<"),
        (r"\s*\\gt(?![A-Za-z])", ">"),
        (r"\\%", "%"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", r"\\text{degree}"),
        (rf"{_WRAPPER}\s*\{{\s*(\d[\d.,]*)\s*\}}(?!\s*\^)", r"{\1}"),
        (_AND_OR, ";"),
        (rf"{_WRAPPER}\s*\{{\s*([^{{}}]*?)\s*\}}", r"\\text{\1}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r",\s+", ";"),  # "1, 234" is a list, "1,234" may be one number
        (r"\s+", " "),
        (r" ?([^\w\\ ]) ?", r"\1"),
    )
)
_PLAIN = re.compile(r"[A-Za-z0-9]+")


@lru_cache(maxsize=8192)
def normal_form(text: str) -> str:
    r"""One spelling for what differs in typesetting alone: spacing, `\left`, `\dfrac`, fonts, `$`, final stop.

    The comma that separates elements for certain (followed by a space, or the word "and" or "or") becomes `;`.
    """
    if _PLAIN.fullmatch(text):
        return text
    text = to_latex(text).strip()
    while whole := _WHOLE_WRAPPER.fullmatch(text.removesuffix(".")):
        text = whole[1].strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".")
    while len(text) > 1 and text[0] == "{" and _closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text


# Values


@dataclass(frozen=True, slots=True)
class _Atom:
    """A number, a letter or an infinity, with what may stand beside it."""

    key: Fraction | str
    unit: str = ""
    percent: bool = False
    grouped: bool = False
    """Written with thousands commas, so it might have been meant as a list."""


@dataclass(frozen=True, slots=True)
class _Based:
    """An integer in an explicit number base."""

    digits: str
    base: int

    @property
    def value(self) -> Fraction:
        return Fraction(int(self.digits, self.base))


@dataclass(frozen=True, slots=True)
class _Opaque:
    """An element this module does not understand: equal only to its own spelling."""

    text: str


@dataclass(frozen=True, slots=True)
class _Collection:
    """A tuple or interval (brackets and order matter), or a set or bare list (they do not)."""

    brackets: str
    """`()`, `[)`, ... or empty: unordered."""
    items: tuple[_Value, ...]


_Value = _Atom | _Based | _Opaque | _Collection


def same_value(answer: str, gold: str) -> bool | None:
    """Whether two answers are the same value; None: cannot tell from here.

    False only when both sides are fully understood, or differ in a part that is. A missing unit is tolerated, a
    different one is not; a missing percent sign is tolerated in the answer only.
    """
    ours, theirs = normal_form(answer), normal_form(gold)
    if ours == theirs or ours.replace(";", ",") == theirs.replace(";", ","):
        return True
    if len(ours) > 1 and ours.isalpha() and theirs.isalpha() and ours.casefold() == theirs.casefold():
        return True
    (our_name, our_value), (their_name, their_value) = _read(ours), _read(theirs)
    if our_name and their_name and our_name != their_name:
        return None
    return _same(our_value, their_value)


def _same(ours: _Value, theirs: _Value) -> bool | None:
    match ours, theirs:
        case _Atom(), _Atom():
            return _same_atom(ours, theirs)
        case _Collection(), _Collection() if ours.brackets and theirs.brackets:
            return _same_sequence(ours, theirs)
        case _Collection(), _Collection() if not ours.brackets and not theirs.brackets:
            return _same_set(ours.items, theirs.items)
        case (_Collection() as several, _Atom() as one) | (_Atom() as one, _Collection() as several):
            keys = {item.key for item in several.items if isinstance(item, _Atom)}
            return False if len(keys) > 1 and not one.grouped else None
        case _Based(), _Based():
            return ours == theirs
        case _Based(), _Atom():  # the other way round, a bare answer may have left the base out
            return ours.value == theirs.key
        case _Opaque(), _Opaque() if ours == theirs:
            return True
    return None


def _same_atom(ours: _Atom, theirs: _Atom) -> bool | None:
    if isinstance(ours.key, str) and isinstance(theirs.key, str) and ours.key != theirs.key:
        return None if ours.key.casefold() == theirs.key.casefold() else False
    same = ours.key == theirs.key
    if isinstance(ours.key, Fraction) and isinstance(theirs.key, Fraction) and ours.percent != theirs.percent:
        # 50 % is 1/2, written either way; a bare 50 is right only where the gold itself says per cent.
        same = ours.key / (100 if ours.percent else 1) == theirs.key / (100 if theirs.percent else 1) or (
            theirs.percent and same
        )
    if not same:
        return None if ours.grouped and theirs.grouped else False
    return not (ours.unit and theirs.unit) or ours.unit == theirs.unit


def _same_sequence(ours: _Collection, theirs: _Collection) -> bool | None:
    if len(ours.items) != len(theirs.items):
        understood = all(isinstance(item, _Atom) for item in ours.items + theirs.items)
        return False if understood else None
    verdicts = [_same(a, b) for a, b in zip(ours.items, theirs.items, strict=True)]
    if False in verdicts:
        return False
    if None in verdicts:
        return None
    # [1, 2] and (1, 2) are different intervals; of longer ones the brackets are a matter of notation.
    return ours.brackets == theirs.brackets or (False if len(verdicts) == 2 else None)


def _same_set(ours: tuple[_Value, ...], theirs: tuple[_Value, ...]) -> bool | None:
    """Every element of one has its equal in the other. A repeated element counts once."""
    table = [[_same(a, b) for b in theirs] for a in ours]
    if all(True in row for row in table) and all(True in column for column in zip(*table, strict=True)):
        return True
    return None if any(None in row for row in table) else False


_NUMERAL = r"(?:\d{1,3}(?:[ ,]\d{3})+(?![\d,])(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(rf"[+-]?{_NUMERAL}")
_SCIENTIFIC = re.compile(
    rf"([+-]?)({_NUMERAL}(?= ?[\\*eE])|(?=10\^))(?: ?(?:\\times|\\cdot|\*)? ?10\^|[eE])\{{?([+-]?\d{{1,3}})\}}?"
)
_RATIO = re.compile(
    rf"([+-]?)(?:(\d+)(?=\\frac| ))? ?(?:\\frac\{{([+-]?{_NUMERAL})\}}\{{([+-]?{_NUMERAL})\}}"
    rf"|\(?([+-]?{_NUMERAL})\)?/\(?([+-]?{_NUMERAL})\)?)"
)
_BASED = re.compile(r"([0-9A-F]+)_\{?(\d{1,2})\}?")
_INFINITY = re.compile(r"([+-]?)\\infty")
_FUNCTION = "sqrt|frac|log|ln|exp|sin|cos|tan"  # `log x = 3` names no value for x
_NAME = rf"(?![^=]*(?:{_FUNCTION}))[A-Za-z(\\][A-Za-z\\ +(),;']*(?:_\{{?\w+\}}?)?\)?"
_ASSIGNED = re.compile(rf"({_NAME})(?:=|\\in(?![A-Za-z]) ?)([^=<>]+)")
_REVERSED = re.compile(r"([^=<>]*\d[^=<>]*)=([A-Za-z])")
_BOUNDS = re.compile(r"(?:([^<>=]+)(<=?))?([A-Za-z])([<>]=?)([^<>=]+)")
_AMBIGUOUS = re.compile(r"\d,\d{3}(?!\d)")
_UNIT_WORDS = (
    "mm|cm|dm|km|meters?|metres?|inch(?:es)?|feet|foot|ft|yards?|miles?|mg|kg|grams?|ml|liters?|litres?|seconds?|sec"
    "|minutes?|min|hours?|hrs?|days?|weeks?|months?|years?|degrees?|radians?|rad|units?|dollars?|cents?|mph"
)
_WITH_UNIT = re.compile(
    rf"(?P<number>.*[\d}}.)%]) ?(?:\\text\{{(?P<text>[^{{}}]*)\}}|(?P<word>{_UNIT_WORDS}))"
    r"(?:\^\{?(?P<power>[23])\}?)?"
)
_UNIT_NAMES = {
    **dict.fromkeys(("meter", "metre"), "m"),
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("kilometer", "kilometre"), "km"),
    **dict.fromkeys(("inche", "in"), "inch"),
    **dict.fromkeys(("foot", "feet"), "ft"),
    **dict.fromkeys(("liter", "litre"), "l"),
    **dict.fromkeys(("second", "sec"), "s"),
    **dict.fromkeys(("hour", "hr"), "h"),
    "gram": "g",
    "kilogram": "kg",
    "minute": "min",
    "radian": "rad",
}


@lru_cache(maxsize=8192)
def _read(text: str) -> tuple[str, _Value]:
    """The name a value is given (`x` in `x=3`; empty without one), and the value."""
    if assigned := _ASSIGNED.fullmatch(text):
        return assigned[1].strip(), _value(assigned[2])
    if reversed_ := _REVERSED.fullmatch(text):
        return reversed_[2], _value(reversed_[1])
    if bounds := _BOUNDS.fullmatch(text):
        return bounds[3], _interval(bounds)
    elements = _split(text)
    if len(elements) > 1 and any("=" in element for element in elements):
        return _solutions(elements)
    return "", _value(text)


def _solutions(elements: tuple[str, ...]) -> tuple[str, _Value]:
    """`x=1;x=2` or `x=1;2`: values of one name. Different names are assignments, which are not understood."""
    read = [_read(element) for element in elements]
    names = {name for name, _ in read if name}
    if len(names) > 1:
        return "", _Opaque(";".join(elements))
    return names.pop() if names else "", _Collection("", tuple(value for _, value in read))


def _interval(bounds: re.Match[str]) -> _Value:
    lower, below, _, beyond, end = bounds.groups()
    if beyond[0] == ">":
        if lower is not None:
            return _Opaque(bounds[0])
        items, brackets = (end, r"\infty"), ("(" if beyond == ">" else "[") + ")"
    else:
        items = (lower or r"-\infty", end)
        brackets = ("[" if below == "<=" else "(") + ("]" if beyond == "<=" else ")")
    return _Collection(brackets, tuple(_value(item) for item in items))


def _value(text: str) -> _Value:
    text = text.strip()
    if atom := _atom(text):
        return atom
    if (based := _BASED.fullmatch(text)) and _is_numeral(based[1], int(based[2])):
        return _Based(based[1], int(based[2]))
    end = _closing(text)
    inside, closing = text[1:-1], text[-1:]
    if text.startswith(r"\{") and text.endswith(r"\}") and end == len(text) - 1:
        return _items("", text[2:-2])
    if text[:1] in ("(", "[") and closing in (")", "]") and end == len(text) - 1:
        if len(_split(inside)) > 1:
            return _items(text[0] + closing, inside)
        return _value(inside) if text[0] + closing == "()" else _Opaque(text)
    return _items("", text) if len(_split(text)) > 1 else _Opaque(text)


def _is_numeral(digits: str, base: int) -> bool:
    return 2 <= base <= 16 and len(digits) <= _MAX_NUMBER and all(int(digit, 16) < base for digit in digits)


def _items(brackets: str, inside: str) -> _Value:
    if _AMBIGUOUS.search(inside):  # (1,234) may be a pair or one number
        return _Opaque(f"{brackets or '{}'}{inside}")
    return _Collection(brackets, tuple(_value(element) for element in _split(inside)))


def _atom(text: str) -> _Atom | None:
    unit = ""
    if found := _WITH_UNIT.fullmatch(text):
        unit, text = _unit_name(found["text"] or found["word"] or "", found["power"]), found["number"].strip()
    percent = text.endswith("%")
    number = _rational(text.removesuffix("%").strip())
    if number is not None:
        return _Atom(number, unit, percent, grouped="," in text)
    if percent or unit:
        return None
    if len(text) == 1 and text.isalpha():
        return _Atom(text)
    if infinity := _INFINITY.fullmatch(text):
        return _Atom("-oo" if infinity[1] == "-" else "+oo")
    return None


def _unit_name(words: str, power: str | None) -> str:
    words = words.lower().strip(" .")
    for word, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if words.startswith(word):
            words, power = words.removeprefix(word), exponent
    singular = words[:-1] if len(words) > 2 and words.endswith("s") else words
    return _UNIT_NAMES.get(singular, singular) + (f"^{power}" if power else "")


def _rational(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number or power of ten, if the text is one."""
    if len(text) > _MAX_NUMBER:
        return None
    while text[:1] == "(" and text[-1:] == ")" and "," not in text and _closing(text) == len(text) - 1:
        text = text[1:-1]
    if _DECIMAL.fullmatch(text):
        return _decimal(text)
    if ratio := _RATIO.fullmatch(text):
        sign, whole, *parts = ratio.groups()
        over, under = (_decimal(part) for part in parts if part is not None)
        if under == 0 or (whole and not 0 <= over < under):  # 2\frac{5}{3} is a product, or a slip
            return None
        value = over / under + (int(whole) if whole else 0)
        return -value if sign == "-" else value
    if power := _SCIENTIFIC.fullmatch(text):
        sign, digits, exponent = power.groups()
        if abs(int(exponent)) > _MAX_EXPONENT:
            return None
        value = (_decimal(digits) if digits else 1) * Fraction(10) ** int(exponent)
        return -value if sign == "-" else value
    return None


def _decimal(numeral: str) -> Fraction:
    return Fraction(numeral.replace(",", "").replace(" ", "").removesuffix("."))


def _closing(text: str) -> int:
    """Where the bracket that opens `text` is closed, -1 if it is not. Any kind closes any: `[0,1)` is an interval."""
    depth = 0
    for at, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return at
    return -1


@lru_cache(maxsize=8192)
def _split(text: str) -> tuple[str, ...]:
    """The elements of a list: at `;` where there is one outside all brackets, else at `,`."""
    for separator in ";,":
        depth, start, elements = 0, 0, []
        for at, character in enumerate(text):
            if character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
            elif character == separator and depth == 0:
                elements.append(text[start:at])
                start = at + 1
        elements.append(text[start:])
        if len(elements) > 1:
            return tuple(elements)
    return (text,)


# What should not be given to a symbolic engine


_HEAVY = re.compile(
    r"\^\s*\{?[^{}^]{0,20}\d{7}"  # ten million as exponent
    r"|\^\s*\w+\s*\^"  # a power of a power without braces
    r"|\d{6}\s*\)*\s*!|!\s*[)}]*\s*!"  # factorials of millions, or of factorials
    r"|\d{200}"
)
_MAX_DEPTH = 30
_MAX_TOWER = 2


def is_heavy(text: str) -> bool:
    """Whether an expression is likely to blow up when evaluated: power towers, huge factorials, deep nesting.

    Cheap and lenient: what passes and is heavy all the same meets the time limit.
    """
    if _HEAVY.search(text):
        return True
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
