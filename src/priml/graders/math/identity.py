"""Test whether two expressions are equal: constants by their value, formulas at several random points.

Variables take random rational values. The seed comes from the expressions, so a verdict never changes.
"""

import random
from collections.abc import Iterator
from fractions import Fraction

from priml.graders.math.ast import Expression, free_symbols, has_log_without_base, has_steps
from priml.graders.math.evaluate import (
    Budget,
    Evaluator,
    NoValue,
    OutOfDomain,
    Point,
    TooComplex,
    Undecidable,
    Value,
    is_complex,
)

_FOR_ORDER = 2000
"""Budget of `approximate`."""
_POINTS = 6
"""Points at which two formulas must agree; half of them are enough where few are in the domain of both."""
_DRAWS = 3 * (
    ((1,), 1100, 4000), ((-1,), 1100, 4000), ((1,), 5000, 12000),
    ((1,), 50, 1000), ((-1, 1), 1100, 4000), ((-1, 1), 5000, 12000),
)  # fmt: skip
"""Signs and range of the values of variables, in 1/1009."""


def is_same_number(
    answer: Expression, gold: Expression, *, tolerance: float | None = None, budget: Budget | None = None
) -> bool | None:
    r"""Return whether two expressions agree wherever both are defined; None if conventions differ.

    `tolerance` is relative, and only for constants. A logarithm without a base is natural or to base ten, whichever
    makes the two agree. With variables, roots and logarithms of negative numbers are left out, so \ln(ab) is
    \ln a + \ln b.

    Raises:
        TooComplex: the comparison needs too much work.
    """
    if answer == gold:
        return True
    names = free_symbols(answer) | free_symbols(gold)
    evaluator = Evaluator(budget or Budget(), real=bool(names))
    bases = (None, 10) if has_log_without_base(answer) or has_log_without_base(gold) else (None,)
    verdicts: list[bool | None] = []
    for log_base in bases:
        try:
            if names:
                verdicts.append(_same_formula(evaluator, answer, gold, log_base))
            else:
                verdicts.append(_same_constant(evaluator, answer, gold, log_base, tolerance))
        except Undecidable:
            verdicts.append(None)
        if verdicts[-1]:
            return True
    return None if None in verdicts else False


def is_proportional(
    answer: Expression, gold: Expression, *, positive: bool = False, budget: Budget | None = None
) -> bool | None:
    """Return whether one expression is a constant (if `positive`, a positive constant) times the other.

    This holds for left side minus right side in two forms of one equation or inequality. None if there are no
    variables, or if conventions differ.

    Raises:
        TooComplex: the comparison needs too much work.
    """
    if not free_symbols(answer) | free_symbols(gold):
        return None
    evaluator = Evaluator(budget or Budget(), real=True)
    ratios: list[tuple[Value, int]] = []  # each with its precision
    for point in _points(answer, gold):
        try:
            a, b = evaluator.values((answer, gold), point)
        except (OutOfDomain, NoValue):
            continue
        except Undecidable:
            return None
        if (a == 0) != (b == 0):
            return False
        if a == 0:
            continue
        ratio = evaluator.apply("/", [a, b])
        ratios.append((ratio, evaluator.precision))
        bits = min(ratios[0][1], evaluator.precision)
        if not evaluator.agree(ratios[0][0], ratio, bits) or (positive and (is_complex(ratio) or ratio <= 0)):
            return False
        if len(ratios) == _POINTS:
            break
    return True if len(ratios) >= _POINTS // 2 else None


def approximate(expression: Expression) -> float | None:
    """Return a real constant as a float, for sorting only; None if it has no real value."""
    try:
        (value,) = Evaluator(Budget(_FOR_ORDER), real=False).values((expression,), {})
        return None if is_complex(value) else float(value)
    except (TooComplex, Undecidable, NoValue, OverflowError):
        return None


def _same_formula(evaluator: Evaluator, answer: Expression, gold: Expression, log_base: int | None) -> bool | None:
    agreed, enough = 0, _POINTS
    if has_steps(answer) or has_steps(gold):
        enough = len(_DRAWS) + _POINTS  # neighbouring steps agree at many points
    for point in _points(answer, gold):
        try:
            values = evaluator.values((answer, gold), point, log_base)
        except (OutOfDomain, NoValue):
            continue
        if not evaluator.agree(values[0], values[1], evaluator.precision):
            return False
        agreed += 1
        if agreed == enough:
            break
    return True if agreed >= _POINTS // 2 else None


def _same_constant(
    evaluator: Evaluator, answer: Expression, gold: Expression, log_base: int | None, tolerance: float | None
) -> bool | None:
    try:
        answer_value, gold_value = evaluator.values((answer, gold), {}, log_base)
    except NoValue:
        try:
            evaluator.values((gold,), {}, log_base)
        except NoValue:
            return None
        return False  # the answer alone has no value
    return evaluator.agree(answer_value, gold_value, evaluator.precision) or (
        tolerance is not None and evaluator.close(answer_value, gold_value, tolerance)
    )


def _points(answer: Expression, gold: Expression) -> Iterator[Point]:
    """Yield values of the variables, of several sizes and signs; at the end positive integers, for factorials."""
    # The seed is the repr of both trees: a renamed class in `ast` changes the points, and rarely a verdict.
    names, rng = sorted(free_symbols(answer) | free_symbols(gold)), random.Random(f"{answer}|{gold}")
    for signs, low, high in _DRAWS:
        yield {name: Fraction(rng.choice(signs) * rng.randint(low, high), 1009) for name in names}
    for _ in range(_POINTS):
        yield {name: Fraction(rng.randint(2, 12)) for name in names}
