import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.equivalence import is_same_value
from priml.graders.math.evaluate import TooComplex

PAIRS = Path(__file__).parent / "fixtures" / "math_pairs.jsonl"
"""Our own labelled pairs: `category`, `gold`, `answer`, `correct`; what a mathematician would sign, by reason."""


def verdict(answer, gold, **options):
    """As the verifier sees it: too complex is not correct."""
    try:
        return is_same_value(answer, gold, **options)
    except TooComplex:
        return False


def labelled_pairs():
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return Counter(row["category"] for row in rows), rows


@pytest.mark.parametrize("category", labelled_pairs()[0])
def test_labelled_pairs_are_judged_as_a_mathematician_would(category):
    rows = [row for row in labelled_pairs()[1] if row["category"] == category]
    mistakes = [row for row in rows if verdict(row["answer"], row["gold"]) is not row["correct"]]
    assert mistakes == []


def test_there_are_pairs_of_both_kinds_in_plenty():
    counts = Counter(row["correct"] for row in labelled_pairs()[1])
    assert min(counts.values()) >= 300


_ONE_WAY = {"units, percent, degrees, money", "number bases", "equations", "words and choices"}
"""An answer may leave out a unit, a base or a name, and write a small letter; a gold may not."""


def test_equality_has_no_direction_where_nothing_is_left_out():
    rows = [row for row in labelled_pairs()[1] if row["correct"] and row["category"] not in _ONE_WAY]
    assert [row for row in rows if verdict(row["gold"], row["answer"]) is not True] == []


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
    assert is_same_value(answer, gold) is True


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
    assert is_same_value(answer, gold) is False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("f(x)+1", "1+f(x)"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"\int_0^x t dt", r"\frac{x^2}{2}"),
        (r"2\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\4\end{pmatrix}"),
        (r"(-8)^{1/3}", "-2"),
        ("5", r"\frac{1}{0}"),
        (r"2\frac{5}{3}x", r"\frac{11}{3}x"),
        ("(1, f(2))", "(1, 3y)"),
        ("x", r"n\pi \text{ if odd } n"),
    ],
)
def test_what_is_not_understood_is_left_to_others(answer, gold):
    assert is_same_value(answer, gold) is None


@pytest.mark.parametrize("answer", [r"\int_0^1 x dx", "f(2)", r"5 \equiv 6", "5=", r"\def\x{5}\x", "(1, f(2))", "½7"])
def test_what_cannot_be_read_is_not_a_plain_value(answer):
    for gold in ("5", r"\sqrt{2}", "D", "(1, 3)", "1, 2", "[0,1]", "101_2"):
        assert is_same_value(answer, gold) is False


@pytest.mark.parametrize(
    "answer", ["9^{9^{9}}", "((10!)!)!", r"\binom{10^{10}}{10^9}", "(x+y)^{99999}", r"\sin(10^{10^{5}})", "2^{200000}"]
)
def test_what_is_too_much_work_is_said_to_be(answer):
    with pytest.raises(TooComplex):
        is_same_value(answer, "7+x")


def test_a_tolerance_applies_to_numbers_wherever_they_stand():
    for answer, gold in (("3.14", r"\pi"), ("(1.001, 2)", "(1,2)"), ("0.334, 2", r"\frac13, 2"), ("99.5", "100")):
        assert is_same_value(answer, gold) is False
        assert is_same_value(answer, gold, tolerance=0.01) is True
        assert is_same_value(answer, gold, tolerance=1e-6) is False
    assert is_same_value("1.001x", "x", tolerance=0.01) is False
    assert is_same_value("0.001", "0", tolerance=0.01) is False


@settings(deadline=None)
@given(st.fractions(max_denominator=10**6))
def test_every_fraction_equals_its_own_spellings(value):
    sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
    for spelling in (
        f"{sign}{over}/{under}",
        rf"{sign}\frac{{{over}}}{{{under}}}",
        rf"\dfrac{{{sign}{over}}}{{{under}}}",
    ):
        assert is_same_value(spelling, str(value)) is True
        assert is_same_value(spelling, f"{value + 1}") is False


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_every_integer_equals_its_grouped_and_decimal_spellings(value):
    for spelling in (f"{value:,}", f"{value}.0", f"x = {value}", f"({value})", f"{value:,}".replace(",", r"\,")):
        assert is_same_value(spelling, str(value)) is True


_PIECES = st.sampled_from(
    re.findall(
        r"\S+|\s",
        r"\frac \sqrt { } ( ) [ ] , ; = < > \le \in x e i 1 12 1,234 .5 / ^ _ % \% \$ \text{ \pm \infty \pi \sin \log"
        r" | ! ' \cup \{ \} \begin{pmatrix} & \\ \end{pmatrix} ² ½ √ ٣ 10^ cm \circ : ≠ ∈ and or",
    )
)
_TEXTS = st.lists(_PIECES, max_size=40).map("".join)


@settings(deadline=None)
@given(_TEXTS, _TEXTS)
def test_any_two_texts_are_compared_without_error(answer, gold):
    assert verdict(answer, gold) in (True, False, None)
    assert verdict(answer, answer) is True


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_equals_itself(text):
    assert is_same_value(text, text) is True
    assert verdict(text, "7") in (True, False, None)


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "(",
            "((1,",
            "a_",
            "1,000",
            "1 ",
            r"\text{ ",
            "x=",
            "a ",
            "^{",
            r"\frac1",
            "√(",
            "{",
            "9!",
            "|",
            "-",
            r"\pm",
            "x^",
        ),
        *(
            r"\sqrt",
            r"\sin",
            "1;",
            r"\sqrt2,",
            r"\cup",
            r"\{",
            "1<",
            "½",
            r"\begin{pmatrix}",
            "x'",
            "2^9^",
            r"\ln(",
            "e^",
        ),
    ],
)
def test_no_answer_of_legal_length_keeps_the_comparison_busy(unit):
    text = (unit * 300)[:300]
    start = time.thread_time()
    for gold in ("7", r"\sqrt{2}+x", r"\sqrt3,\sqrt5"):
        verdict(text, gold)
    assert time.thread_time() - start < 20.0  # at most 0.3 s; hours if it were exponential


_LEAVES = st.integers(1, 50).map(str) | st.sampled_from(["x", "y", r"\pi", "e", r"\sqrt{2}", r"\frac{3}{7}", "0.25"])


def _grown(inner):
    pair = st.tuples(inner, inner)
    return (
        pair.map(lambda p: f"{p[0]}+{p[1]}")
        | pair.map(lambda p: f"{p[0]}-\\left({p[1]}\\right)")
        | pair.map(lambda p: f"\\left({p[0]}\\right)\\cdot\\left({p[1]}\\right)")
        | pair.map(lambda p: rf"\frac{{{p[0]}}}{{1+\left({p[1]}\right)^2}}")
        | inner.map(lambda p: rf"\sqrt{{4+\left({p}\right)^{{2}}}}")
        | inner.map(lambda p: rf"\cos\left({p}\right)")
    )


_FORMULAS = st.recursive(_LEAVES, _grown, max_leaves=6).filter(lambda text: len(text) < 120)


@settings(deadline=None)
@given(_FORMULAS)
def test_a_formula_equals_its_other_spellings_and_no_changed_value(formula):
    for spelling in (
        rf"\left({formula}\right)",
        formula.replace(r"\frac", r"\dfrac").replace(r"\cdot", r"\times "),
        f"0+{formula}",
        rf"\frac{{2\left({formula}\right)}}{{2}}",
        rf"1+\left({formula}\right)-1",
        f"f(x) = {formula}",
    ):
        assert is_same_value(spelling, formula) is True
    for changed in (
        rf"{formula}+\frac{{1}}{{1000000}}",
        rf"\left({formula}\right)\left(1+10^{{-25}}\right)+10^{{-30}}",
        rf"{formula}+10^{{-40}}z",
        rf"2+\left|{formula}\right|+\left({formula}\right)^2",
    ):
        assert is_same_value(changed, formula) is False


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), st.randoms())
def test_order_matters_in_tuples_and_not_in_sets(numbers, rng):
    shuffled = rng.sample(numbers, len(numbers))
    gold, answer = (", ".join(map(str, several)) for several in (numbers, shuffled))
    assert is_same_value(rf"\{{{answer}\}}", rf"\{{{gold}\}}") is True
    assert is_same_value(answer, gold) is True
    assert is_same_value(f"({answer})", f"({gold})") is (shuffled == numbers)
    assert is_same_value(rf"\{{{answer}\}}", f"({gold})") is False
    assert is_same_value(answer, str(numbers[0])) is False


@settings(deadline=None)
@given(st.fractions(max_denominator=50), st.fractions(max_denominator=50), st.booleans(), st.booleans())
def test_an_interval_is_the_inequality_that_describes_it(a, b, has_low, has_high):
    low, high = min(a, b), max(a, b) + 1
    gold = f"{'(['[has_low]}{low},{high}{')]'[has_high]}"
    below, above = (r"\le" if has else "<" for has in (has_low, has_high))
    assert is_same_value(f"{low} {below} x {above} {high}", gold) is True
    assert is_same_value(f"{low} {below} x {above} {high + 1}", gold) is False
    assert is_same_value(f"{'(['[not has_low]}{low},{high}{')]'[has_high]}", gold) is False
