from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.answer_types import Ordered, Quantity, RealSet, Words
from priml.graders.math.ast import Number
from priml.graders.math.intervals import REALS, as_real_set, complement, intersection, interval, points, union

_ENDS = st.tuples(st.integers(-5, 5), st.integers(0, 4), st.booleans(), st.booleans())
_SETS = st.lists(_ENDS, max_size=4).map(
    lambda ends: union([between(low, low + span + 1, a, b) for low, span, a, b in ends])
)
_PROBES = [Fraction(n, 2) for n in range(-14, 25)]


def number(value):
    return Number(Fraction(value))


def between(low, high, has_low=True, has_high=True):
    return interval(number(low), number(high), has_low, has_high)


def holds(reals, x):
    return any(
        (p.low_at < x or (p.has_low and p.low_at == x)) and (x < p.high_at or (p.has_high and p.high_at == x))
        for p in reals.pieces
    )


@settings(deadline=None)
@given(_SETS, _SETS)
def test_operations_mean_what_they_say(left, right):
    for x in _PROBES:
        assert holds(union([left, right]), x) == (holds(left, x) or holds(right, x))
        assert holds(intersection(left, right), x) == (holds(left, x) and holds(right, x))
        assert holds(complement(left), x) != holds(left, x)


def test_pieces_that_touch_become_one():
    assert union([between(1, 2), between(2, 3, False, True)]) == between(1, 3)
    assert len(union([between(1, 2, True, False), between(2, 3, False, True)]).pieces) == 2


def test_the_whole_line_and_nothing_are_each_other_s_complement():
    assert complement(REALS) == RealSet(())
    assert complement(RealSet(())) == REALS


def test_tuples_of_two_and_points_are_sets_and_words_are_not():
    one, two = Quantity(number(1)), Quantity(number(2))
    assert as_real_set(Ordered("[)", (one, two))) == between(1, 2, True, False)
    assert len(points((two, one))) == 2
    assert as_real_set(Words("east", is_pure=True)) is None
    assert as_real_set(Ordered("::", (one, two))) is None
