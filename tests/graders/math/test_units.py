from fractions import Fraction

import pytest

from priml.graders.math.normalize import normalize
from priml.graders.math.units import conversion, split_unit


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"5\text{ cm}", "5", "cm"),
        ("5 cm", "5", "cm"),
        (r"5\text{ centimetres}", "5", "centimetre"),
        (r"15\text{ cm}^2", "15", "cm^2"),
        (r"15\text{ square centimeters}", "15", "centimeter^2"),
        (r"15\text{ cm squared}", "15", "cm^2"),
        (r"8\text{ cubic feet}", "8", "feet^3"),
        (r"60\text{ km/h}", "60", "h^-1*km"),
        (r"60\ \text{km}/\text{h}", "60", "h^-1*km"),
        (r"60\ \frac{\text{km}}{\text{h}}", "60", "h^-1*km"),
        ("70 miles per hour", "70", "hour^-1*mile"),
        ("70 mph", "70", "mph"),
        (r"90^\circ", "90", "degree"),
        (r"\$5", "5", "dollar"),
        (r"-\$5", "-5", "dollar"),
        ("€5", "5", "euro"),
        (r"\sqrt{2}\text{ units}", r"\sqrt{2}", "unit"),
        (r"61\text{ students}", "61", "student"),
    ],
)
def test_the_unit_is_split_off_and_has_one_spelling(text, value, unit):
    measured = split_unit(normalize(text))
    assert (measured.value.strip(), measured.unit, measured.factor) == (value, unit, 1)


@pytest.mark.parametrize(
    ("unit", "other", "rate"),
    [
        *(("cm", "centimetre", 1), ("m", "cm", 100), ("feet^3", "ft^3", 1), ("mph", "hour^-1*mile", 1)),
        *(("m*s^-1", "kph", Fraction(18, 5)), ("week", "day", 7), ("dollar", "cent", 100), ("yr", "year", 1)),
        *(("m", "s", None), ("apple", "orange", None), ("degC", "kelvin", None), ("dollar", "euro", None)),
        *(("cm", "cm^2", None), ("point", "pint", None), ("apple", "apple", 1)),
    ],
)
def test_what_measures_the_same_is_converted_exactly(unit, other, rate):
    assert conversion(unit, other) == rate
    assert conversion(other, unit) == (rate and 1 / Fraction(rate))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (r"6\text{ h }30\text{ min}", "13/2", "h"),
        (r"30^\circ 30'", "61/2", "degree"),
        ("5'6\"", "11/2", "foot"),
    ],
)
def test_what_is_measured_in_two_units_is_one_value(text, value, unit):
    measured = split_unit(normalize(text))
    assert (measured.value, measured.unit) == (value, unit)


def test_number_words_are_factors():
    assert split_unit(normalize(r"5\text{ million dollars}")).factor == Fraction(10**6)
    assert split_unit("3 dozen").factor == 12


@pytest.mark.parametrize(
    "text",
    [
        *("5", "5m", "x+1", r"\text{cm}", r"5\text{ or } 6", r"5\text{ is wrong}", r"5\text{ or more}"),
        *(r"\text{about } 5", r"5\text{ plus six}", "5 (maybe)", r"\sin x", r"\frac{5\text{ cm}}{2}+1"),
    ],
)
def test_what_changes_the_meaning_is_no_unit(text):
    assert split_unit(normalize(text)) is None
