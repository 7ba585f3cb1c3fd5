from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.evaluate import Budget, Evaluator
from priml.graders.math.normalize import normalize
from priml.graders.math.parser import parse


def value(text, **letters):
    point = {name: Fraction(number) for name, number in letters.items()}
    (result,) = Evaluator(Budget(), real=True).values((parse(normalize(text)),), point)
    return result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1+2*3", 7),
        ("-x^2", -9),
        ("2x^2-x", 15),
        ("1/2x", Fraction(3, 2)),
        ("x(x+1)", 12),
        ("(x+1)(x-1)2", 16),
        (r"\frac x2", Fraction(3, 2)),
        (r"2\frac12", Fraction(5, 2)),
        (r"x\frac12", Fraction(3, 2)),
        (r"3\cdot 2\frac12", Fraction(15, 2)),
        ("2 1/2", Fraction(5, 2)),
        ("2^{x}", 8),
        ("2^-x", Fraction(1, 8)),
        ("10^12", 10**12),
        ("|1-x|", 2),
        ("|x||-x|", 9),
        ("2|x-5|+1", 5),
        (r"\lfloor \frac{7}{2} \rfloor", 3),
        ("x!", 6),
        (r"\binom{x+2}{2}", 10),
        (r"\sqrt{x+1}", 2),
        (r"\sqrt[3]{-8}", -2),
        (r"\max(1, x, 2)", 3),
        ("1,234x", 3702),
        (r"5\%", Fraction(1, 20)),
        ("{[(x)]}", 3),
        ("x-(-x)", 6),
    ],
)
def test_expressions_are_read_as_written(text, result):
    assert value(text, x=3) == result


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sin 2x", r"\sin(2x)"),
        (r"2\sin x\cos x", r"2(\sin(x))(\cos(x))"),
        (r"\sin^2 x", r"(\sin x)^2"),
        (r"\sin x^2", r"\sin(x^2)"),
        (r"\sin(x)y", r"y\sin(x)"),
        (r"\sin \frac{x}{2}y", r"\sin(\frac{xy}{2})"),
        (r"\sin^{-1} x", r"\arcsin x"),
        (r"\ln 2 / \ln 3", r"\frac{\ln 2}{\ln 3}"),
        (r"\log_2 8x", r"\log_{2}(8x)"),
        (r"\ln|x|", r"\ln(x)"),
        (r"\sinx", r"\sin x"),
        (r"\sin 30^\circ", r"\sin\frac{\pi}{6}"),
    ],
)
def test_functions_take_the_argument_a_reader_would_give_them(one, other):
    half = Fraction(1, 2)
    work = Evaluator(Budget(), real=True)
    values = work.values([parse(normalize(text)) for text in (one, other)], {"x": half, "y": Fraction(1, 3)})
    assert work.agree(*values, work.precision)


@pytest.mark.parametrize(
    "text",
    [
        *("", "2 3", "x2", "4-2 3", "x^2^3", "2^3!", "5!!", r"2\frac{5}{3}", "f(x)", "y'(t)", "I(0)", r"\sin(x)^2"),
        *("(1", "1)", "x+", "+", "word", "two words", r"\foo{x}", "x=1", "1,2", "²", "٣", "x;y", r"\text{cm}"),
        *(r"\frac123", "(" * 50, r"\sin" * 50),
    ],
)
def test_what_is_malformed_or_ambiguous_is_not_read(text):
    assert parse(text) is None


@settings(deadline=None)
@given(st.text(alphabet=r"\{}()[]|^_!'%+-*/.,; 019xfe" + "πsincoqrta", max_size=60))
def test_any_text_is_read_or_not(text):
    parse(text)
    parse(normalize(text))
