from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.answer_types import (
    Ambiguous,
    Assignments,
    BasedNumeral,
    Equation,
    Inequality,
    Matrix,
    NamedValue,
    Ordered,
    Quantity,
    RealSet,
    Unordered,
    Unparsed,
    Words,
)
from priml.graders.math.ast import Number
from priml.graders.math.normalize import normalize
from priml.graders.math.read import is_name, read, read_atom, text_key


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("5", Quantity),
        ("(x+1)(x-1)", Quantity),
        ("(1, 2)", Ordered),
        (r"\langle 1, 2, 3 \rangle", Ordered),
        ("]0, 1]", Ordered),
        (r"\{1, 2\}", Unordered),
        ("1, 2", Unordered),
        (r"1 \text{ or } 2", Unordered),
        ("x < 3", NamedValue),
        ("1 < x < 3", NamedValue),
        (r"x \ne 3", NamedValue),
        (r"x < 1 \text{ or } x > 2", NamedValue),
        (r"(0,1) \cup (2,3)", RealSet),
        (r"\mathbb{R} \setminus \{0\}", RealSet),
        (r"\{x \mid x > 0\}", RealSet),
        (r"\emptyset", RealSet),
        ("x + y < z", Inequality),
        ("x = 3", NamedValue),
        ("f(x) = 2x", NamedValue),
        (r"\angle ABC = 60^\circ", NamedValue),
        ("x = 1, x = 2", NamedValue),
        ("x = 1, y = 2", Assignments),
        ("(x, y) = (1, 2)", Assignments),
        ("2 + 3 = 5", Equation),
        ("x^2 = 9", Equation),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", Matrix),
        (r"\text{east}", Words),
        ("f(x)", Unparsed),
        ("<<<", Unparsed),
    ],
)
def test_texts_are_read_as_what_they_are(text, kind):
    assert isinstance(read(normalize(text)), kind)


@pytest.mark.parametrize(
    "text",
    ["x", "f(2)", "a+b", r"\angle ABC", r"\sin A", "P(X=2)", "a_{10}", "f^{-1}(x)", r"\overline{AB}", "(x,y)", "y'"],
)
def test_a_name_has_no_numbers_of_its_own(text):
    assert is_name(normalize(text))


@pytest.mark.parametrize("text", ["2x", "x^2", "x-1", "5", r"\pi", r"\sqrt{2}", "", "1+1"])
def test_an_equation_to_be_solved_names_nothing(text):
    assert not is_name(normalize(text))


def test_inequalities_turn_either_way():
    assert read("3>x") == read("x<3")
    assert read("7>=x>=-2") == read("-2<=x<=7")
    assert read("x>1;x<3") == read("1<x<3")


@settings(deadline=None)
@given(st.text(alphabet=r"\{}()[],;=<>≠|:_^&1x2 +-", max_size=60))
def test_any_text_is_read(text):
    assert read(normalize(text)) == read(normalize(text))


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
