r"""Split the unit from an answer: `5\text{ square cm}` is 5 and `cm^2`."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Measured:
    """A text split into its value and its unit."""

    value: str
    unit: str
    """In one form: `cm^2`, `m*s^-1`, `degree`; empty when there was only a factor."""
    factor: Fraction
    """The factor of a word such as *million*."""


_NAMES = {
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "dm": "decimeter decimetre",
    "km": "kilometer kilometre",
    "inch": "inche in",
    "ft": "foot feet",
    "yd": "yard",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "s": "second sec",
    "min": "minute mins",
    "h": "hour hr",
    "g": "gram gm",
    "mg": "milligram",
    "kg": "kilogram kilo",
    "lb": "pound",
    "oz": "ounce",
    "rad": "radian",
    "degree": "deg °",
    "dollar": "usd",
    "person": "people",
    "n": "newton",
    "j": "joule",
    "w": "watt",
    "v": "volt",
    "hz": "hertz",
    "k": "kelvin",
}
_ALIASES = {name: unit for unit, names in _NAMES.items() for name in names.split()}
_RATES = {"mph": "mile/h", "kph": "km/h", "kmh": "km/h", "fps": "ft/s"}
_FACTORS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNIT = frozenset(
    re.findall(
        r"\S+",
        "not no never or maybe perhaps possibly approximately about roughly nearly almost is isn't are was if when "
        "where for but except unless wrong incorrect false plus minus times over more less least most than and to "
        "mod modulo any all other answer half third quarter double twice negative percent",
    )
)
"""Words that change the meaning: a text with one of them is not a unit."""
_MAX_WORDS = 4

# Units that may stand without \text. Single letters may not: 5m is five times m.
_BARE = (
    r"(?:square|sq\.?|cubic) [a-z]+|mm|cm|dm|km|yd|mg|kg|oz|lbs?|ml|mL|mph|kph|Hz|meters?|metres?|centimet(?:er|re)s?"
    r"|kilomet(?:er|re)s?|inch(?:es)?|feet|foot|ft|yards?|miles?|miles?|grams?|kilograms?|lit(?:er|re)s?|seconds?|secs?"
    r"|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|degrees?|radians?|rad|units?|dollars?|cents?|people"
    r"|students?|hundred|thousand|million|billion|trillion|dozen"
)
_POWER = r"(?:\^(?:\{-?[0-9]\}|-?[0-9]))?"
_PIECE = rf"(?:\\text\{{[^{{}}]*\}}|{_BARE}){_POWER}"
_TAIL = re.compile(rf"{_PIECE}(?:(?:[/* -]|per)*{_PIECE})*(?:[/*-][A-Za-z]+)?|\\text\{{degree\}} ?[CFK]?")
_BARE_TAIL = re.compile(rf"(?<=[0-9)}}\]!|. ])(?:{_BARE}){_POWER}(?:(?: ?/ ?| per )(?:{_BARE}|[a-z]){_POWER})?$")
_CURRENCY = re.compile(r"(-?)([$€£¥])(?=[0-9.])|([$€£¥])$")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen"}


@lru_cache(maxsize=4096)
def split_unit(text: str) -> Measured | None:
    """Split a normalized text into value and unit; None if it has no unit at its end (or currency at its start)."""
    if currency := _CURRENCY.search(text):
        rest = text[: currency.start()] + (currency[1] or "") + text[currency.end() :]
        further = split_unit(rest)
        name = _CURRENCIES[currency[2] or currency[3]]
        factor = further.factor if further else Fraction(1)
        return Measured(further.value if further else rest, name, factor)
    start = _tail_start(text)
    if start is None:
        return None
    described = _describe(text[start:])
    return None if described is None else Measured(text[:start].strip(), *described)


def _tail_start(text: str) -> int | None:
    depth = 0
    for at, character in enumerate(text):
        if character == "\\" and depth == 0 and at and text.startswith("\\text{", at):
            return at if _TAIL.fullmatch(text, at) else None
        depth += (character in "([{") - (character in ")]}")
    bare = _BARE_TAIL.search(text)
    return bare.start() if bare else None


def _describe(tail: str) -> tuple[str, Fraction] | None:
    """Return the unit in one form, and its factor."""
    tail = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail)
    tail = re.sub(r"\^\{?(-?[0-9])\}?", r" ^\1", tail)
    if "\\" in tail or ";" in tail:
        return None  # a conjunction
    words = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*|°|\^-?[0-9]|/", tail.lower())
    if not words or len(words) > 2 * _MAX_WORDS or _NO_UNIT.intersection(words):
        return None
    powers: dict[str, int] = {}
    factor, side, pending, last = Fraction(1), 1, 1, ""
    for word in words:
        if word in _FACTORS:
            factor *= _FACTORS[word]
        elif word in ("/", "per"):
            side = -1
        elif word in ("square", "sq"):
            pending = 2
        elif word == "cubic":
            pending = 3
        elif word in ("squared", "cubed") or word[0] == "^":
            exponent = {"squared": 2, "cubed": 3}.get(word) or int(word[1:])
            if last:
                powers[last] *= exponent
        else:
            for part, direction in _named(word):
                powers[part] = powers.get(part, 0) + side * direction * pending
                last = part
            pending = 1
    unit = "*".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()))
    return unit, factor


def _named(word: str) -> list[tuple[str, int]]:
    if word in _RATES:
        over, under = _RATES[word].split("/")
        return [(over, 1), (under, -1)]
    singular = word[:-1] if len(word) > 2 and word.endswith("s") else word
    return [(_ALIASES.get(word) or _ALIASES.get(singular, singular), 1)]
