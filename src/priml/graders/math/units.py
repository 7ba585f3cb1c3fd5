r"""Split the unit from an answer, `5\text{ square cm}` is 5 and `cm^2`, and convert units into others.

What follows a number counts as its unit: words, abbreviations, signs of currencies. Which units are one and the same,
or convertible, says pint, which is loaded when two units that are spelled differently meet for the first time.
"""

import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pint import UnitRegistry


@dataclass(frozen=True, slots=True)
class Measured:
    """A text split into its value and its unit."""

    value: str
    unit: str
    """With powers, as `cm^2`, `m*s^-1`, `degree`; empty when there was only a factor."""
    factor: Fraction
    """The factor of a word such as *million*."""


_FACTORS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNIT = frozenset(
    re.findall(
        r"\S+",
        "not no never or maybe perhaps possibly approximately about roughly nearly almost is isn't are was if when "
        "where for but except unless wrong incorrect false plus minus times over more less least most than and to "
        "mod modulo any all other answer half third quarter double twice negative percent base",
    )
)
"""Words that change the meaning: a text with one of them is not a unit."""
_ORDINALS = frozenset(("st", "nd", "rd", "th"))
_ALIASES = {  # where pint has no such name, or another meaning: its `pt` is a pint
    "wk": "week", "pts": "point", "pt": "point", "gm": "gram", "kilo": "kilogram", "people": "person", "usd": "dollar",
    "eur": "euro", "gbp": "pound_sterling", "inr": "rupee", "rs": "rupee", "kmh": "kph", "inche": "inch",
    "radian": "rad",
    "deg": "degree", "celsius": "degC", "fahrenheit": "degF", "°c": "degC", "°f": "degF",
}  # fmt: skip
_MAX_WORDS = 4

# Units that may stand without \text: known short ones, and any word of four letters. Single letters may not: 5m is five
# times m.
_BARE = (
    r"(?:square|sq\.?|cubic|cu\.?) [a-z]+|mm|cm|dm|km|yd|mg|kg|oz|lbs?|ml|mL|mph|kph|Hz|ft|hrs?"
    r"|min|sec|day|egg|car|way|cup|pen"
    r"|box|boy|man|men|cow|pig|dog|cat|hat|ton|bag|can|jar|job|key|row|cent|rad|pts?|USD|EUR|GBP|[A-Za-z]{4,}(?:-[a-z]+)?"
)
_POWER = r"(?:\^(?:\{-?[0-9]\}|-?[0-9]))?"
_PIECE = rf"(?:\\text\{{[^{{}}]*\}}|\\Omega|{_BARE}){_POWER}"
_TAIL = re.compile(
    rf"/?[(\[]?{_PIECE}(?:(?:[/* -]|per)*{_PIECE})*(?:[/*-][A-Za-z]+{_POWER})*[)\]]?"
    rf"|\\text\{{degree\}} ?(?:[CFK]|\\text\{{[^{{}}]*\}})?"
)
_BARE_TAIL = re.compile(
    rf"(?<=[0-9)}}\]!. ])(?:{_BARE}){_POWER}(?:(?: ?/ ?| per | )(?:{_BARE}|[a-z]){_POWER}){{0,3}}$"
    r"|(?<=[0-9}]) ?\\Omega$"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}")
_SIGNS = {"$": "dollar", "€": "euro", "£": "pound_sterling", "¥": "yen", "₹": "rupee", "¢": "cent"}
_CURRENCY = re.compile(rf"^(-?)(?:US)?([{''.join(_SIGNS)}]) ?(?=-?[0-9.\\(])|([{''.join(_SIGNS)}])$")
_CURRENCY_WORD = re.compile(r"^(-?)(?:\\text\{ ?)?(USD|EUR|GBP|INR|Rs)\.? ?\}? ?(?=-?[0-9.])")
_SEXAGESIMAL = re.compile(r"(-?[0-9.]+)\\text\{degree\} ?(?:([0-9.]+)')? ?(?:([0-9.]+)(?:''|\"))?")
_FEET = re.compile(r"(?:([0-9.]+)')? ?(?:([0-9.]+)\")?")
_PARTS = re.compile(r"([0-9.]+) ?(\\text\{[^{}]*\}|[A-Za-z]+) ?(?:;|\\text\{,? ?and\})?")


@lru_cache(maxsize=4096)
def split_unit(text: str) -> Measured | None:
    """Split a normalized text into value and unit; None if it has no unit at its end (or currency at its start)."""
    if currency := _CURRENCY.search(text) or _CURRENCY_WORD.search(text):
        rest = text[: currency.start()] + (currency[1] or "") + text[currency.end() :]
        further = split_unit(rest)
        sign = currency[2] or currency[currency.re.groups]
        name = _SIGNS.get(sign) or _ALIASES[sign.lower()]
        if further is None:
            return Measured(rest.strip(), name, Fraction(1))
        unit = name if further.unit in ("", name) else f"{name}*{further.unit}"
        return Measured(further.value, unit, further.factor)
    if angle := _SEXAGESIMAL.fullmatch(text):
        return _mixed(angle.groups(), "degree", 60)
    if (length := _FEET.fullmatch(text)) and length[2]:
        return Measured(length[2], "inch", Fraction(1)) if length[1] is None else _mixed(length.groups(), "foot", 12)
    start = _tail_start(text)
    if start is None:
        return _compound(text)
    described = _describe(text[start:])
    return None if described is None else Measured(text[:start].strip(), *described)


def _mixed(parts: tuple[str | None, ...], unit: str, base: int) -> Measured | None:
    values = [Fraction(part or 0) if re.fullmatch(r"-?[0-9]+\.?[0-9]*", part or "0") else None for part in parts]
    if None in values:
        return None
    total = sum((value / base**power for power, value in enumerate(values) if value is not None), Fraction(0))
    return Measured(str(total), unit, Fraction(1))


def _compound(text: str) -> Measured | None:
    r"""Read `6\text{h}30\text{min}` in the first of its units."""
    parts = list(_PARTS.finditer(text))
    if len(parts) < 2 or "".join(part[0] for part in parts) != text:
        return None
    total, first = Fraction(0), ""
    for part in parts:
        described = _describe(part[2])
        if described is None or part[1].count(".") > 1 or part[1] == ".":
            return None
        first = first or described[0]
        rate = conversion(described[0], first)
        if rate is None:
            return None
        total += Fraction(part[1].rstrip(".")) * described[1] * rate
    return Measured(str(total), first, Fraction(1))


def _tail_start(text: str) -> int | None:
    depth = 0
    for at, character in enumerate(text):
        if depth == 0 and at and text.startswith(("\\text{", "[\\text{", "(\\text{"), at):
            at -= text[at - 1] == "/"
            return at if at and _TAIL.fullmatch(text, at) else None
        depth += (character in "([{") - (character in ")]}")
    bare = _BARE_TAIL.search(text)
    return bare.start() if bare and not _WORD.search(text, 0, bare.start()) else None


def _describe(tail: str) -> tuple[str, Fraction] | None:
    """Return the unit in one form, and its factor."""
    tail = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail)
    tail = re.sub(r"\^\{?(-?[0-9])\}?", r" ^\1", tail).replace("\\Omega", "ohm")
    tail = re.sub(r"\bdegrees? +(?:C(?:elsius)?|celsius)\b", "degC", tail)
    tail = re.sub(r"\bdegrees? +(?:F(?:ahrenheit)?|fahrenheit)\b", "degF", tail)
    if "\\" in tail or ";" in tail:
        return None  # a conjunction
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*|°[CFcf]?|\^-?[0-9]|/", tail)
    if not words or len(words) > 2 * _MAX_WORDS or _NO_UNIT.intersection(map(str.lower, words)):
        return None
    powers: dict[str, int] = {}
    factor, side, pending, last = Fraction(1), 1, 1, ""
    for word in words:
        if word in _FACTORS:
            factor *= _FACTORS[word]
        elif word in ("/", "per"):
            side = -1
        elif word.lower() in ("square", "sq"):
            pending = 2
        elif word.lower() in ("cubic", "cu"):
            pending = 3
        elif word in ("squared", "cubed") or word[0] == "^":
            exponent = {"squared": 2, "cubed": 3}.get(word) or int(word[1:])
            if last:
                powers[last] *= exponent
        elif word.lower() not in _ORDINALS:
            last = _singular(word)
            powers[last] = powers.get(last, 0) + side * pending
            pending = 1
    unit = "*".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()))
    return unit, factor


def _singular(word: str) -> str:
    word = word if len(word) < 4 else word.lower() if word not in ("degC", "degF") else word
    singular = word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
    return _ALIASES.get(word.lower()) or _ALIASES.get(singular.lower(), singular)


# Conversion

_lock = threading.Lock()


@cache
def _registry() -> "UnitRegistry[Fraction]":
    import pint  # most of a second, and only for units with two spellings

    exact: Any = Fraction  # pint takes it, its types do not
    registry = pint.UnitRegistry(non_int_type=exact)
    for unit in ("dollar", "euro", "pound_sterling", "yen", "rupee", "point"):
        registry.define(f"{unit} = [{unit}]")
    registry.define("cent = dollar / 100")
    return registry


@lru_cache(maxsize=4096)
def conversion(unit: str, other: str) -> Fraction | None:
    """Return how many `other` one `unit` is; None if they measure different things, as 5 cm and 5 s or 5 apples do.

    Temperatures are not converted, because their zeros differ. The two spellings of a unit have the conversion 1.
    """
    if unit == other:
        return Fraction(1)
    if "degC" in unit + other or "degF" in unit + other:
        return None
    with _lock:
        (size, dimension), (other_size, other_dimension) = _in_base_units(unit), _in_base_units(other)
    return size / other_size if dimension == other_dimension else None


def _in_base_units(unit: str) -> tuple[Fraction, dict[str, Fraction]]:
    size, dimension = Fraction(1), dict[str, Fraction]()
    for factor in unit.split("*"):
        name, _, power = factor.partition("^")
        exponent = int(power or 1)
        scale, parts = _word_in_base_units(name)
        size *= scale**exponent
        for part, count in parts.items():
            dimension[part] = dimension.get(part, Fraction(0)) + count * exponent
    return size, {part: count for part, count in dimension.items() if count}


def _word_in_base_units(name: str) -> tuple[Fraction, dict[str, Fraction]]:
    """Return the size of a unit in base units, and these; what pint does not know is a unit of its own."""
    import pint

    for spelling in (name, name.lower()):
        try:
            found = _registry().Quantity(1, spelling).to_base_units()
        except (pint.PintError, AttributeError, TypeError, ValueError):
            continue
        return Fraction(str(found.magnitude)), {part: Fraction(str(count)) for part, count in found.unit_items()}
    return Fraction(1), {name: Fraction(1)}
