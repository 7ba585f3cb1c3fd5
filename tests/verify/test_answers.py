import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.verify.answers import boxed_answer, is_heavy, same_value, to_latex


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{3} then later \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{6} and \boxed{unclosed", "6"),
        (r"\boxed{unclosed \boxed{7} and on", "7"),
        (r"} \boxed{8}", "8"),
        (r"\boxed{}", ""),
        (r"\boxed{unclosed", None),
        ("the answer is 5", None),
        ("", None),
        (r"<think>\boxed{1}</think> so \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> no box", None),
        (r"<think>\boxed{1} still thinking", None),
        (r"first thoughts</think>\boxed{2}", "2"),
    ],
)
def test_the_last_complete_box_after_the_thinking_counts(response, answer):
    assert boxed_answer(response) == answer


@given(st.lists(st.sampled_from(["\\boxed", "\\fbox", "{", "}", "\\", "\\{", " ", "7", "<think>", "</think>"])))
def test_the_scanner_takes_any_mess_and_finds_a_box_after_it(parts):
    mess = "".join(parts)
    answer = boxed_answer(mess)
    assert answer is None or answer in mess
    assert boxed_answer(mess + r" </think>\boxed{42}") == "42"


@pytest.mark.parametrize(
    "unit", [r"\boxed{", "{", "}", r"\boxed", r"\boxed ", "\\", r"\boxed{}", r"\boxed{{}", "</think>"]
)
def test_scanning_takes_linear_time(unit):
    start = time.perf_counter()
    boxed_answer(unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - start < 2.0


EQUAL = [
    ("7", "7"),
    ("c", "c"),
    (" 7 ", "7"),
    ("+7", "7"),
    ("07", "7"),
    ("7.", "7"),
    ("7.0", "7"),
    (".5", "0.5"),
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"1\,234", "1234"),
    (r"1,\!234", "1234"),
    ("1 234 567", "1234567"),
    ("\\$6", "6"),
    (r"\frac{2}{4}", r"\frac12"),
    (r"\dfrac{1}{2}", "0.5"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    (r"\frac{1}{-2}", "-1/2"),
    (r"2\frac{1}{2}", "2.5"),
    ("2 1/2", "5/2"),
    (r"-2\frac{1}{2}", "-2.5"),
    (r"50\%", "0.5"),
    ("0.5", r"50\%"),
    ("50", r"50\%"),
    (r"1.25 \times 10^{3}", "1250"),
    (r"8.0\cdot 10^{-1}", "0.8"),
    ("10^6", "1000000"),
    ("1e3", "1000"),
    ("x = 3", "3"),
    ("3", "x=3"),
    ("3 = x", "x=3"),
    ("a+b = 222", "222"),
    ("x = 1, x = 2", "2, 1"),
    ("x = 1 or x = 2", "1,2"),
    (r"1 \text{ and } 2", "2,1"),
    (r"\{2, 1\}", r"\{1,2\}"),
    (r"\{2, 1\}", "1, 2"),
    (r"\left(1,\,2\right)", "(1, 2)"),
    ("(x,y) = (1, 2)", "(1,2)"),
    (r"[0,\infty)", r"\left[0, +\infty\right)"),
    (r"x \in [1,2]", "[1,2]"),
    ("x > 5", r"(5,\infty)"),
    (r"-2 \le x \le 7", "[-2,7]"),
    (r"x \leq 0", r"(-\infty,0]"),
    (r"5\text{ cm}", "5"),
    ("5 cm", r"5\text{ centimeters}"),
    (r"5\text{ cm}^2", r"5\text{ square cm}"),
    (r"90^\circ", "90"),
    ("90°", r"90^{\circ}"),
    (r"\text{(D)}", "D"),
    (r"\textbf{Navin}", "navin"),
    (r"\mathbf{608}", "608"),
    ("4210_5", "4210_{5}"),
    ("101_2", "5"),
    ("½", r"\frac{1}{2}"),
    ("−3", "-3"),
    ("3\u00a0072", "3072"),
    ("２", "2"),
    (r"\boxed{5}", "5"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_values_in_another_form_are_equal(answer, gold):
    assert same_value(answer, gold) is True


DIFFERENT = [
    ("7", "8"),
    ("c", "d"),
    ("c", "7"),
    ("-7", "7"),
    ("123456", "123457"),
    ("50", "0.5"),
    (r"50\%", "50"),
    ("9,911", "9901"),
    ("15.625", "15625"),
    ("1e4", "1000"),
    (r"\frac{1}{3}", "0.3333"),
    ("1 or 2 or 3", "2"),
    ("1, 2", "1"),
    (r"\{1, 2, 3\}", "2"),
    ("[1,2]", "(1,2)"),
    ("[0, 1)", "[0, 1]"),
    ("(2,1)", "(1,2)"),
    ("(1,2,3)", "(1,2)"),
    ("1, 2, 3", "1, 2"),
    (r"(0,\sqrt{3})", r"(1,\sqrt{2})"),
    (r"x \ge -14", "-14"),
    (r"5\text{ m}", r"5\text{ cm}"),
    (r"5\text{ cm}^2", r"5\text{ cm}^3"),
    (r"(-\infty, 1000]", r"(-\infty,0]"),
    ("4210_6", "4210_{5}"),
    ("101_2", "101"),
    (r"\text{(D) and (B)}", "D"),
]


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different_values_are_different(answer, gold):
    assert same_value(answer, gold) is False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("x+1", "1+x"),
        ("y = 3", "x = 3"),
        ("4210", "4210_{5}"),
        ("19_5", "19"),
        ("(1,234)", "1234"),
        ("(1,234)", "[1,234]"),
        ("200,100", "100, 200"),
        (r"\pm 5", "5"),
        ("x=1, y=2", "1, 2"),
        ("no", "none"),
        ("d", "D"),
        ("3/0", "3"),
        (r"10^{999}", "3"),
        (r"\log x = 3", "3"),
    ],
)
def test_what_is_not_plainly_a_value_is_left_to_others(answer, gold):
    assert same_value(answer, gold) is None


@given(st.fractions(max_denominator=10**6))
def test_every_fraction_equals_its_own_spellings(value):
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    for spelling in (
        f"{sign}{over}/{under}",
        rf"{sign}\frac{{{over}}}{{{under}}}",
        rf"\dfrac{{{sign}{over}}}{{{under}}}",
    ):
        assert same_value(spelling, str(value)) is True
        assert same_value(spelling, f"{value + 1}") is False


@given(st.integers(-(10**12), 10**12))
def test_every_integer_equals_its_grouped_and_decimal_spellings(value):
    for spelling in (f"{value:,}", f"{value}.0", f"x = {value}", f"({value})", f"{value:,}".replace(",", r"\,")):
        assert same_value(spelling, str(value)) is True


_TOKENS = re.findall(
    r"\S+|\n",
    r"""\frac \sqrt { } ( ) [ ] , ; = < > \le \in x e 1 12 1,234 .5 / ^ _ % \% \$ \text{ and or \pm \infty
    ² ½ √ ٣ \\ 10^""",
)
_PIECES = st.sampled_from([*_TOKENS, " "])


@given(st.lists(_PIECES, max_size=40).map("".join), st.lists(_PIECES, max_size=40).map("".join))
def test_any_two_texts_are_compared_without_error(answer, gold):
    assert same_value(answer, gold) in (True, False, None)
    assert same_value(answer, answer) is True


@given(st.text(max_size=300))
def test_any_text_equals_itself_quickly(text):
    start = time.perf_counter()
    assert same_value(text, text) is True
    assert same_value(text, "7") in (True, False, None)
    assert is_heavy(text) in (True, False)
    assert time.perf_counter() - start < 0.1


@pytest.mark.parametrize(
    "unit", ["(", "((1,", "a_", "1,000", "1 ", r"\text{ ", "x=", "a ", "^{", r"\frac1", "√(", "{", "9!"]
)
def test_no_answer_of_legal_length_keeps_the_comparison_busy(unit):
    text = (unit * 300)[:300]
    start = time.perf_counter()
    same_value(text, "7")
    is_heavy(text)
    assert time.perf_counter() - start < 0.05


def test_unicode_forms_become_latex():
    assert to_latex("2√3 x² ≤ ½") == r"2\sqrt{3} x^{2} \le  \frac{1}{2}"
    assert to_latex("√(x+1)⋅π") == r"\sqrt{x+1}\cdot \pi"


@pytest.mark.parametrize("text", ["9^{9^{9^{9}}}", "2^3^4", "(10!)!", "9999999!", "x^{10000000}", "(" * 40, "7" * 201])
def test_bombs_are_recognised(text):
    assert is_heavy(text)


@pytest.mark.parametrize("text", ["x^2+y^2+z^2", "e^{-x^2}", r"2^{2019}", "5!", r"\frac{4 \cdot 999^{4}}{27}", "2023!"])
def test_ordinary_powers_and_factorials_are_not_bombs(text):
    assert not is_heavy(text)
