from fractions import Fraction

import pytest

from priml.graders.math.answer_types import Ambiguous, BasedNumeral, Ordered, Quantity, Unordered, Unparsed, Words
from priml.graders.math.ast import Number
from priml.graders.math.atoms import read_atom, text_key
from priml.graders.math.normalize import normalize


def leaf(text):
    return read_atom(normalize(text))


def test_numbers_carry_their_unit():
    assert leaf("5") == Quantity(Number(Fraction(5)))
    assert leaf(r"20\%") == Quantity(Number(Fraction(20)), is_percent=True)
    assert leaf("5 cm") == Quantity(Number(Fraction(5)), unit="cm")
    assert leaf(r"\sin 30^\circ").unit == ""
    assert leaf(r"30^\circ").unit == "degree"


def test_a_double_sign_makes_a_list():
    assert leaf(r"1\pm x") == Unordered((leaf("1+x"), leaf("1-x")), in_braces=False)


def test_thousands_may_be_a_list():
    number, several = leaf("1,234").readings
    assert number == leaf("1234")
    assert several.items == (leaf("1"), leaf("234"))
    assert isinstance(leaf("1,234"), Ambiguous)


def test_numbers_in_other_bases_have_a_value():
    assert leaf("204_5") == BasedNumeral("204", 5)
    assert leaf("-1A_{16}").value == -26
    assert leaf("0.1_2").value == Fraction(1, 2)
    assert not isinstance(leaf("205_5"), BasedNumeral)


def test_ratios_keep_their_order():
    assert leaf("3:4") == Ordered("::", (leaf("3"), leaf("4")))


@pytest.mark.parametrize(
    "text", ["east", r"\text{yes}", "12:05", "8:30 pm", r"\mathbb{Z}", "?", r"\neg 5", r"5\ldots", "5*", "日", "2 3"]
)
def test_words_are_words(text):
    assert isinstance(leaf(text), Words)


@pytest.mark.parametrize("text", ["f(x)", r"\int_0^1 x dx", r"\triangle ABC", "x^2^3"])
def test_unknown_mathematics_is_unknown(text):
    assert isinstance(leaf(text), Unparsed)


def test_spelling_ignores_case_space_and_stops():
    assert text_key(r"\text{8:34 P.M.}") == text_key("8:34 pm")
    assert text_key("5*") != text_key("5")
