from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.numerals import parse_rational


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7.50", Fraction(-15, 2)),
        (".5", Fraction(1, 2)),
        ("1,234,567", 1234567),
        ("1 234", 1234),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        ("3/-4", Fraction(-3, 4)),
        (r"2\frac{1}{3}", Fraction(7, 3)),
        (r"-2\frac{1}{3}", Fraction(-7, 3)),
        ("2 1/3", Fraction(7, 3)),
        ("10^6", 10**6),
        ("1.5*10^{-2}", Fraction(3, 200)),
        ("3e8", 3 * 10**8),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"1.2\overline{34}", Fraction(611, 495)),
        ("((5))", 5),
    ],
)
def test_numbers_have_their_exact_value(text, value):
    assert parse_rational(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "1,23", "12,34", "1/0", r"2\frac{5}{3}", "10^{999}", "7" * 101, "٣", "²", "1 2", "--1", "1.2.3", "(1,2)"],
)
def test_what_is_no_number_or_not_for_certain_has_none(text):
    assert parse_rational(text) is None


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6))
def test_every_fraction_is_read_back(value):
    assert parse_rational(str(value)) == value
    assert parse_rational(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@settings(deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_a_number_or_not(text):
    assert parse_rational(text) is None or isinstance(parse_rational(text), Fraction)
