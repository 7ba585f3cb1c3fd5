from fractions import Fraction

import pytest

from priml.graders.math.evaluate import Budget, Evaluator, NoValue, OutOfDomain, TooComplex, Undecidable
from priml.graders.math.parser import parse


def value(text, *, real=False, **letters):
    point = {name: Fraction(number) for name, number in letters.items()}
    (result,) = Evaluator(Budget(), real=real).values((parse(text),), point)
    return result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (r"\frac{1}{3}+\frac{1}{6}", Fraction(1, 2)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        ("8^{2/3}", 4),
        (r"\sqrt[5]{32}", 2),
        ("(2^{100}+1)^{2}", (2**100 + 1) ** 2),
        (r"\sqrt[3]{10^{30}}", 10**10),
        ("(-1)^{7}", -1),
        ("20!", 2432902008176640000),
        (r"\gcd(12,18)", 6),
    ],
)
def test_rational_values_are_exact(text, result):
    assert value(text) == result
    assert isinstance(value(text), Fraction)


@pytest.mark.parametrize(
    "text", [r"\sin\pi", r"e^{i\pi}+1", r"\sqrt{2}^2-2", r"\ln 8-3\ln 2", r"\sqrt{5+2\sqrt{6}}-\sqrt{2}-\sqrt{3}"]
)
def test_what_is_zero_but_for_rounding_is_zero(text):
    assert value(text) == 0


def test_conventions():
    assert value(r"\sqrt{-4}") == value("2i")
    assert value(r"\sqrt[3]{-27}") == -3
    assert value(r"\lfloor \sqrt{2}\sqrt{2} \rfloor") == 2
    with pytest.raises(Undecidable):
        value("(-8)^{1/3}")


@pytest.mark.parametrize(
    "text", [r"\frac{1}{0}", r"\ln 0", r"\frac{1}{\sqrt{2}^2-2}", r"\tan\frac{\pi}{2}", "(-1)!", "0^{-1}"]
)
def test_what_has_no_value_has_none(text):
    with pytest.raises(NoValue):
        value(text)


@pytest.mark.parametrize("text", [r"\sqrt{x}", r"\ln x", "x^{1/2}", r"\arcsin(5x)", "x!"])
def test_formulas_are_real(text):
    with pytest.raises(OutOfDomain):
        value(text, real=True, x=Fraction(-1, 2))


@pytest.mark.parametrize(
    "text",
    [
        *("9^{9^{9}}", "(10!)!", "1001!", r"\binom{10^{10}}{10^{9}}", "e^{10^{10}}", r"\sin(10^{300})", "2^{99999}"),
        r"\sqrt{2}^{99999}",
    ],
)
def test_large_numbers_are_refused_before_they_are_computed(text):
    with pytest.raises(TooComplex):
        value(text)


def test_work_is_counted():
    budget = Budget(100)
    with pytest.raises(TooComplex):
        Evaluator(budget, real=False).values((parse(r"\sin 1+" * 30 + "1"),), {})
