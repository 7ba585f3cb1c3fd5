"""Sets of real numbers as unions of intervals. The ends are exact; their order is computed with floats."""

from priml.graders.math.answer_types import Ambiguous, Interval, Ordered, Quantity, RealSet, Unordered, Value
from priml.graders.math.ast import Apply, Expression, Letter
from priml.graders.math.identity import approximate

INFINITY = Letter("\\infty")
MINUS_INFINITY = Apply("neg", (INFINITY,))
REALS = RealSet((Interval(MINUS_INFINITY, INFINITY, False, False, float("-inf"), float("inf")),))


def as_real_set(value: Value) -> RealSet | None:
    """Convert an interval or a set of numbers; None for other values."""
    match value:
        case RealSet():
            return value
        case Ordered(brackets, (Quantity(low), Quantity(high))) if brackets != "::":
            return interval(low, high, brackets[0] == "[", brackets[1] == "]")
        case Ambiguous(readings):
            return next((found for found in map(as_real_set, readings) if found is not None), None)
        case Unordered(items):
            pieces = points(items)
            if pieces is not None:
                return union([RealSet(pieces)])
            sets = [as_real_set(item) for item in items]  # a list of intervals
            return None if None in sets else union([found for found in sets if found is not None])
    return None


def points(values: tuple[Value, ...]) -> tuple[Interval, ...] | None:
    """Convert real numbers to intervals of length zero; None if a value is not a real number."""
    pieces: list[Interval] = []
    for value in values:
        if not isinstance(value, Quantity) or (at := approximate(value.expression)) is None:
            return None
        pieces.append(Interval(value.expression, value.expression, True, True, at, at))
    return tuple(pieces)


def interval(low: Expression, high: Expression, has_low: bool, has_high: bool) -> RealSet | None:
    """Return the interval between two ends; None if an end is not real."""
    infinite = {INFINITY: float("inf"), MINUS_INFINITY: float("-inf")}
    low_at, high_at = (infinite[end] if end in infinite else approximate(end) for end in (low, high))
    if low_at is None or high_at is None:
        return None
    return RealSet((Interval(low, high, has_low, has_high, low_at, high_at),)) if low_at <= high_at else RealSet(())


def union(sets: list[RealSet]) -> RealSet:
    """Return the union of sets; intervals that overlap or touch become one."""
    merged: list[Interval] = []
    for piece in sorted((p for s in sets for p in s.pieces), key=lambda p: (p.low_at, not p.has_low)):
        last = merged[-1] if merged else None
        if last and (piece.low_at < last.high_at or (_meet(last, piece) and (piece.has_low or last.has_high))):
            longer = max(last, piece, key=lambda p: (p.high_at, p.has_high))
            merged[-1] = Interval(last.low, longer.high, last.has_low, longer.has_high, last.low_at, longer.high_at)
        else:
            merged.append(piece)
    return RealSet(tuple(merged))


def _meet(left: Interval, right: Interval) -> bool:
    return left.high_at == right.low_at or abs(left.high_at - right.low_at) < 1e-12 * abs(left.high_at)


def complement(reals: RealSet) -> RealSet:
    """Return the real numbers that are not in the set."""
    gaps: list[Interval] = []
    low, has_low, low_at = REALS.pieces[0].low, False, float("-inf")
    for piece in reals.pieces:
        if piece.low_at > low_at or (piece.low_at == low_at and has_low and not piece.has_low):
            gaps.append(Interval(low, piece.low, has_low, not piece.has_low, low_at, piece.low_at))
        low, has_low, low_at = piece.high, not piece.has_high, piece.high_at
    if low_at < float("inf"):
        gaps.append(Interval(low, INFINITY, has_low, False, low_at, float("inf")))
    return RealSet(tuple(gaps))


def intersection(left: RealSet, right: RealSet) -> RealSet:
    """Return the real numbers in both sets."""
    return complement(union([complement(left), complement(right)]))
