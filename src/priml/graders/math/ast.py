"""The syntax tree of an expression: three kinds of node, and functions that need no computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat


@dataclass(frozen=True, slots=True)
class Number:
    """An integer or decimal, exactly."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Letter:
    r"""A variable, with its subscript (`x`, `a_{1}`, `\theta`), or one of the constants `\pi`, `e`, `i`, `\infty`."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation (`+ * / ^ neg ! pm mp`) or a function (`sin`, `sqrt`, `root`, `binom`, ...) of its arguments."""

    name: str
    arguments: tuple[Expression, ...]


Expression = Number | Letter | Apply

_CONSTANTS = frozenset(("\\pi", "e", "i"))


def free_symbols(expression: Expression) -> frozenset[str]:
    r"""Return the variables of an expression; `\pi`, `e` and `i` are constants."""
    match expression:
        case Letter(name):
            return frozenset() if name in _CONSTANTS else frozenset((name,))
        case Apply(_, arguments):
            return frozenset().union(*map(free_symbols, arguments))
    return frozenset()


def expand_signs(expression: Expression) -> tuple[Expression, ...]:
    r"""Return the expressions that double signs stand for: 3 \pm 1 is 4 and 2. Without a double sign, the input.

    Several \pm are independent. With a \mp, all upper signs belong together, and all lower signs.
    """
    count = _count_signs(expression, "pm")
    linked = _count_signs(expression, "mp") > 0
    if not count and not linked:
        return (expression,)
    free = 1 if linked else min(count, 3)
    choices = [[bool(number >> bit & 1) for bit in range(free)] for number in range(2**free)]
    return tuple(_signed(expression, repeat(*choice) if linked else iter(choice)) for choice in choices)


def _count_signs(expression: Expression, sign: str) -> int:
    if not isinstance(expression, Apply):
        return 0
    return (expression.name == sign) + sum(_count_signs(argument, sign) for argument in expression.arguments)


def _signed(expression: Expression, choice: Iterator[bool]) -> Expression:
    if not isinstance(expression, Apply):
        return expression
    if expression.name in ("pm", "mp"):
        negative = next(choice, False) != (expression.name == "mp")
        inner = _signed(expression.arguments[0], choice)
        return Apply("neg", (inner,)) if negative else inner
    return Apply(expression.name, tuple(_signed(argument, choice) for argument in expression.arguments))


def without_denominators(expression: Expression) -> Expression:
    """Return the numerator when all is written over one denominator: of y - 1/x it is yx - 1."""
    return _as_fraction(expression)[0]


_ONE = Number(Fraction(1))


def _as_fraction(expression: Expression) -> tuple[Expression, Expression]:
    match expression:
        case Apply("/", (over, under)) if free_symbols(under):
            (a, b), (c, d) = _as_fraction(over), _as_fraction(under)
            return _times(a, d), _times(b, c)
        case Apply("neg", (inner,)):
            above, below = _as_fraction(inner)
            return Apply("neg", (above,)), below
        case Apply("*" | "+" as name, arguments):
            above, below = _as_fraction(arguments[0])
            for next_above, next_below in map(_as_fraction, arguments[1:]):
                if name == "*":
                    above, below = _times(above, next_above), _times(below, next_below)
                elif below == next_below:
                    above = Apply("+", (above, next_above))
                else:
                    above = Apply("+", (_times(above, next_below), _times(next_above, below)))
                    below = _times(below, next_below)
            return above, below
    return expression, _ONE


def _times(left: Expression, right: Expression) -> Expression:
    if _ONE in (left, right):
        return right if left == _ONE else left
    return Apply("*", (left, right))


def has_log_without_base(expression: Expression) -> bool:
    """Return whether the expression has a logarithm without a base."""
    if not isinstance(expression, Apply):
        return False
    return (expression.name == "log" and len(expression.arguments) == 1) or any(
        map(has_log_without_base, expression.arguments)
    )


def has_steps(expression: Expression) -> bool:
    """Return whether the expression has a number rounded up or down."""
    if not isinstance(expression, Apply):
        return False
    return expression.name in ("floor", "ceil") or any(map(has_steps, expression.arguments))
