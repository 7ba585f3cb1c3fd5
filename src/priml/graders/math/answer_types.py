"""The types of parsed answers: a quantity, a tuple, a set, an interval, a matrix, an equation, words."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from priml.graders.math.ast import Expression


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or a formula."""

    expression: Expression
    unit: str = ""
    is_percent: bool = False


@dataclass(frozen=True, slots=True)
class BasedNumeral:
    """A number in an explicit base."""

    digits: str
    """With its sign and point."""
    base: int

    @property
    def value(self) -> Fraction:
        whole, _, part = self.digits.partition(".")
        return Fraction(int(whole + part, self.base), self.base ** len(part))


@dataclass(frozen=True, slots=True)
class Words:
    """Text, or text with a formula in it. It is equal only to the same text."""

    key: str
    """The text in lower case, without spaces, full stops and brackets."""
    is_pure: bool
    """There is no formula in it."""


@dataclass(frozen=True, slots=True)
class Unparsed:
    """Mathematics that the parser does not know."""

    text: str


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, vector, interval or ratio: brackets, order and repetition matter."""

    brackets: str
    """`()`, `[)`, ...; `::` for ratios."""
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Unordered:
    """A set, or a bare list of solutions: order and repetition do not matter."""

    items: tuple[Value, ...]
    in_braces: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval of real numbers; a point when both ends are equal."""

    low: Expression
    high: Expression
    has_low: bool
    has_high: bool
    low_at: float
    high_at: float
    """Approximate ends, for sorting only."""


@dataclass(frozen=True, slots=True)
class RealSet:
    """A union of disjoint intervals in ascending order; no two of them touch."""

    pieces: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix, row by row."""

    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class NamedValue:
    """A value with a name, as in `x = 3` or `f(x) = 2x`."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Assignments:
    """Values of different names, as in `x = 1, y = 2`."""

    pairs: tuple[tuple[str, Value], ...]
    in_tuple: bool
    """Written as (x, y) = (1, 2), which gives the order; otherwise the values are ordered by name."""


@dataclass(frozen=True, slots=True)
class Equation:
    """The sides of an equation; none of them is only a name."""

    sides: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Inequality:
    """A chain such as a < b <= c, or a ≠ b, where it does not describe a set of numbers by its ends."""

    sides: tuple[Value, ...]
    """From small to large."""
    signs: tuple[str, ...]
    """`<`, `<=` or `≠` between them."""


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A text with several meanings: 1,234 is a number or a list."""

    readings: tuple[Value, ...]


Value = (
    Quantity | BasedNumeral | Words | Unparsed | Ordered | Unordered | RealSet | Matrix | NamedValue | Assignments
    | Equation | Inequality | Ambiguous
)  # fmt: skip
