"""Whether two expressions have the same value: at one point without letters, at several with them.

Letters take random rational values; the same two expressions draw the same ones, so a verdict never changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from priml.graders.math.ast import Expression, has_bare_log, letters
from priml.graders.math.evaluate import Arithmetic, Budget, Outside, Point, TooComplex, Undefined, Unsure, is_complex

_FOR_ORDER = 2000
"""Budget for the approximate place of a number."""
_POINTS = 6
"""Places at which two formulas must agree; half of them where few are in the domain of both."""
_DRAWS = 3 * (
    ((1,), 1100, 4000), ((-1,), 1100, 4000), ((1,), 5000, 12000),
    ((1,), 50, 1000), ((-1, 1), 1100, 4000), ((-1, 1), 5000, 12000),
)  # fmt: skip
"""Signs and range of the values of letters, in 1/1009."""


def same_number(
    ours: Expression, theirs: Expression, *, tolerance: float | None = None, budget: Budget | None = None
) -> bool | None:
    r"""Whether two expressions agree wherever both are defined; None if conventions differ on that.

    `tolerance` is relative, and for expressions without letters alone. A logarithm without a base is natural or to base
    ten, whichever makes the two agree. Where letters are involved, roots and logarithms of negative numbers are left
    out: \ln(ab) is \ln a + \ln b.

    Raises:
        TooComplex: to tell is too much work.
    """
    if ours == theirs:
        return True
    names = letters(ours) | letters(theirs)
    work = Arithmetic(budget or Budget(), real=bool(names))
    bases = (None, 10) if has_bare_log(ours) or has_bare_log(theirs) else (None,)
    verdicts: list[bool | None] = []
    for log_base in bases:
        try:
            if names:
                verdicts.append(_same_formula(work, ours, theirs, log_base))
            else:
                verdicts.append(_same_constant(work, ours, theirs, log_base, tolerance))
        except Unsure:
            verdicts.append(None)
        if verdicts[-1]:
            return True
    return None if None in verdicts else False


def proportional(
    ours: Expression, theirs: Expression, *, positive: bool = False, budget: Budget | None = None
) -> bool | None:
    """Whether one expression is a constant (if `positive`, a positive constant) times the other.

    So are the differences of the sides in two forms of one equation, or inequality. None if there are no letters, or if
    conventions differ.

    Raises:
        TooComplex: to tell is too much work.
    """
    if not letters(ours) | letters(theirs):
        return None
    work = Arithmetic(budget or Budget(), real=True)
    ratios: list[tuple[Any, int]] = []  # and the precision of each
    for point in _points(ours, theirs):
        try:
            a, b = work.values((ours, theirs), point)
        except (Outside, Undefined):
            continue
        except Unsure:
            return None
        if (a == 0) != (b == 0):
            return False
        if a == 0:
            continue
        ratios.append((work.apply("/", [a, b]), work.precision))
        bits = min(ratios[0][1], work.precision)
        if not work.agree(ratios[0][0], ratios[-1][0], bits) or (positive and not _is_positive(ratios[-1][0])):
            return False
        if len(ratios) == _POINTS:
            break
    return True if len(ratios) >= _POINTS // 2 else None


def approximate(expression: Expression) -> float | None:
    """A float near the value of a real expression without letters, None if it has none. For putting in order only."""
    try:
        (value,) = Arithmetic(Budget(_FOR_ORDER), real=False).values((expression,), {})
        return None if is_complex(value) else float(value)
    except (TooComplex, Unsure, Undefined, OverflowError):
        return None


def _same_formula(work: Arithmetic, ours: Expression, theirs: Expression, log_base: int | None) -> bool | None:
    agreed = 0
    for point in _points(ours, theirs):
        try:
            values = work.values((ours, theirs), point, log_base)
        except (Outside, Undefined):
            continue
        if not work.agree(values[0], values[1], work.precision):
            return False
        agreed += 1
        if agreed == _POINTS:
            break
    return True if agreed >= _POINTS // 2 else None


def _same_constant(
    work: Arithmetic, ours: Expression, theirs: Expression, log_base: int | None, tolerance: float | None
) -> bool | None:
    try:
        answer, gold = work.values((ours, theirs), {}, log_base)
    except Undefined:
        return _verdict_without_value(work, theirs, log_base)
    return work.agree(answer, gold, work.precision) or (tolerance is not None and work.close(answer, gold, tolerance))


def _verdict_without_value(work: Arithmetic, gold: Expression, log_base: int | None) -> bool | None:
    """When one side has no value: wrong, unless it is the gold that has none."""
    try:
        work.values((gold,), {}, log_base)
    except Undefined:
        return None
    return False


def _points(ours: Expression, theirs: Expression) -> Iterator[Point]:
    """Values for the letters, of several sizes and signs; at last positive integers, for those who need them."""
    names, chance = sorted(letters(ours) | letters(theirs)), random.Random(f"{ours}|{theirs}")
    for signs, low, high in _DRAWS:
        yield {name: Fraction(chance.choice(signs) * chance.randint(low, high), 1009) for name in names}
    for _ in range(_POINTS):
        yield {name: Fraction(chance.randint(2, 12)) for name in names}


def _is_positive(value: Any) -> bool:
    return not is_complex(value) and value > 0
