"""Sets of real numbers: unions of intervals and points, with exact ends in approximate order."""

from __future__ import annotations

from priml.graders.math.answer_types import Either, Piece, Quantity, RealSet, Sequence, Several, Value
from priml.graders.math.ast import Apply, Expression, Letter
from priml.graders.math.identity import approximate

INFINITY = Letter("\\infty")
MINUS_INFINITY = Apply("neg", (INFINITY,))
REALS = RealSet((Piece(MINUS_INFINITY, INFINITY, False, False, float("-inf"), float("inf")),))


def as_real_set(value: Value) -> RealSet | None:
    """An interval, a finite set of numbers, or what is a set of reals already."""
    match value:
        case RealSet():
            return value
        case Sequence(brackets, (Quantity(low), Quantity(high))) if brackets != "::":
            return interval(low, high, brackets[0] == "[", brackets[1] == "]")
        case Either(readings):
            return next((found for found in map(as_real_set, readings) if found is not None), None)
        case Several(items):
            pieces = points(items)
            if pieces is not None:
                return union([RealSet(pieces)])
            sets = [as_real_set(item) for item in items]  # a list of intervals
            return None if None in sets else union([found for found in sets if found is not None])
    return None


def points(values: tuple[Value, ...]) -> tuple[Piece, ...] | None:
    """Real numbers as pieces of no length; None if one of the values is no real number."""
    pieces: list[Piece] = []
    for value in values:
        at = approximate(value.expression) if isinstance(value, Quantity) else None
        if at is None or not isinstance(value, Quantity):
            return None
        pieces.append(Piece(value.expression, value.expression, True, True, at, at))
    return tuple(pieces)


def interval(low: Expression, high: Expression, has_low: bool, has_high: bool) -> RealSet | None:
    """What lies between two ends; None if an end has no place on the real line."""
    low_at, high_at = (_end(end) for end in (low, high))
    if low_at is None or high_at is None:
        return None
    return RealSet((Piece(low, high, has_low, has_high, low_at, high_at),)) if low_at <= high_at else RealSet(())


def _end(expression: Expression) -> float | None:
    if expression == INFINITY:
        return float("inf")
    return float("-inf") if expression == MINUS_INFINITY else approximate(expression)


def union(sets: list[RealSet]) -> RealSet:
    """All of the sets together: pieces that overlap or touch become one."""
    merged: list[Piece] = []
    for piece in sorted((p for s in sets for p in s.pieces), key=lambda p: (p.low_at, not p.has_low)):
        last = merged[-1] if merged else None
        if last and (piece.low_at < last.high_at or (_meet(last, piece) and (piece.has_low or last.has_high))):
            longer = max(last, piece, key=lambda p: (p.high_at, p.has_high))
            merged[-1] = Piece(last.low, longer.high, last.has_low, longer.has_high, last.low_at, longer.high_at)
        else:
            merged.append(piece)
    return RealSet(tuple(merged))


def _meet(left: Piece, right: Piece) -> bool:
    return left.high_at == right.low_at or abs(left.high_at - right.low_at) < 1e-12 * abs(left.high_at)


def complement(reals: RealSet) -> RealSet:
    """The real numbers that are not in a set."""
    gaps: list[Piece] = []
    low, has_low, low_at = REALS.pieces[0].low, False, float("-inf")
    for piece in reals.pieces:
        if piece.low_at > low_at or (piece.low_at == low_at and has_low and not piece.has_low):
            gaps.append(Piece(low, piece.low, has_low, not piece.has_low, low_at, piece.low_at))
        low, has_low, low_at = piece.high, not piece.has_high, piece.high_at
    if low_at < float("inf"):
        gaps.append(Piece(low, INFINITY, has_low, False, low_at, float("inf")))
    return RealSet(tuple(gaps))


def intersection(ours: RealSet, theirs: RealSet) -> RealSet:
    """The real numbers in both sets."""
    return complement(union([complement(ours), complement(theirs)]))
