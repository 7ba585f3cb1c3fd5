r"""What an answer can be: a quantity, a tuple, a set, an interval, a matrix, an equation, words."""

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
class Based:
    """A number in an explicit base."""

    digits: str
    """With its sign and point."""
    base: int

    @property
    def value(self) -> Fraction:
        """The number."""
        whole, _, part = self.digits.partition(".")
        return Fraction(int(whole + part, self.base), self.base ** len(part))


@dataclass(frozen=True, slots=True)
class Words:
    """Text, or a formula among text: equal to its own spelling alone."""

    key: str
    """Small letters, digits and signs, without the rest."""
    is_pure: bool
    """No formula in it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Mathematics that is not understood here."""

    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """A tuple, vector, interval or ratio: brackets, order and repetition matter."""

    brackets: str
    """`()`, `[)`, ...; `::` for ratios."""
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Several:
    """A set, or a bare list of solutions: order and repetition do not matter."""

    items: tuple[Value, ...]
    in_braces: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the real line."""

    low: Expression
    high: Expression
    has_low: bool
    has_high: bool
    low_at: float
    high_at: float
    """Approximate ends, for putting in order."""


@dataclass(frozen=True, slots=True)
class RealSet:
    """A union of disjoint stretches in ascending order, none touching the next."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A value with a name, as in `x = 3` or `f(x) = 2x`."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Assignments:
    """Values of different names, as in `x = 1, y = 2`."""

    pairs: tuple[tuple[str, Value], ...]
    in_tuple: bool
    """Written (x, y) = (1, 2), so the order is given; otherwise it is that of the names."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Sides of an equation, none of them a mere name."""

    sides: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Inequality:
    """`smaller` < or <= `larger`, not of the form that describes an interval."""

    smaller: Expression
    larger: Expression
    is_strict: bool


@dataclass(frozen=True, slots=True)
class Either:
    """A text that can be read in two ways: 1,234 is a number or a list."""

    readings: tuple[Value, ...]


Value = (
    Quantity | Based | Words | Unknown | Sequence | Several | RealSet | Matrix | Named | Assignments | Chain
    | Inequality | Either
)  # fmt: skip
