import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.graders.math.identity import approximate, is_proportional, is_same_number
from priml.graders.math.parser import parse


def same(one, other, **options):
    return is_same_number(parse(one), parse(other), **options)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\frac{1}{-\frac{1}{11}+\frac{2\sqrt{3}}{11}}", r"1+2\sqrt{3}"),
        (r"\cos 20\text{degree}\cos 40\text{degree}\cos 80\text{degree}", r"\frac{1}{8}"),
        (r"4\arctan\frac{1}{5}-\arctan\frac{1}{239}", r"\frac{\pi}{4}"),
        (r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", "1"),
        (r"\tan^2 y+1", r"\sec^2 y"),
        (r"\sin x\cos y", r"\frac{1}{2}(\sin(x+y)+\sin(x-y))"),
        (r"\frac{x^{10}-1}{x-1}", "x^9+x^8+x^7+x^6+x^5+x^4+x^3+x^2+x+1"),
        (r"\sqrt{x^2}", "|x|"),
        (r"\ln(ab)", r"\ln a+\ln b"),
        ("(-1)^{n}", "(-1)^{n+2}"),
        ("n!", "n(n-1)!"),
        (r"\log 100", "2"),
        (r"\log x", r"\ln x"),
    ],
)
def test_identities_hold(one, other):
    assert same(one, other) is True
    assert same(other, one) is True


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sqrt{2}+10^{-40}", r"\sqrt{2}"),
        (r"\sqrt{2}+10^{-100}", r"\sqrt{2}"),
        (r"\cos(10^{-50})", "1"),
        ("1.41421356237309504880168872420969807856967187537694807317667973799", r"\sqrt{2}"),
        (r"e^{\pi\sqrt{163}}", "262537412640768744"),
        (r"\sqrt{x^2}", "x"),
        ("|x-2|", "2-x"),
        ("x^2+10^{-30}x", "x^2"),
        (r"\frac{1}{\sqrt{2}^2-2}", "3"),
        ("x", "y"),
        ("(x-1)(x-2)(x-3)", "0"),
    ],
)
def test_what_only_looks_alike_differs(one, other):
    assert same(one, other) is False


def test_a_tolerance_is_relative_and_for_numbers():
    assert same("3.14", r"\pi", tolerance=0.001) is True
    assert same("3.14", r"\pi", tolerance=0.0001) is False
    assert same("1.0001x", "x", tolerance=0.001) is False


def test_what_has_no_value_is_wrong_unless_the_gold_has_none():
    assert same(r"\frac{1}{0}", "3") is False
    assert same("3", r"\frac{1}{0}") is None


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("2x-2y+2", "x-y+1", True),
        ("-x^2+1", "3x^2-3", True),
        (r"\sqrt{2}x-2", r"x-\sqrt{2}", True),
        ("x+y", "x-y", False),
        ("x^2", "x", False),
        ("x", "0", False),
        ("3", "5", None),
    ],
)
def test_equations_may_be_multiplied_by_a_constant(one, other, verdict):
    assert is_proportional(parse(one), parse(other)) is verdict


def test_inequalities_only_by_a_positive_one():
    assert is_proportional(parse("2x-2y"), parse("x-y"), positive=True) is True
    assert is_proportional(parse("y-x"), parse("x-y"), positive=True) is False


def test_real_numbers_have_a_place():
    assert approximate(parse(r"\frac{\sqrt{2}}{2}")) == pytest.approx(0.70710678)
    assert approximate(parse("2i")) is None
    assert approximate(parse("x")) is None
    assert approximate(parse("9^{9^{9}}")) is None


@settings(deadline=None)
@given(st.integers(2, 10**6), st.integers(1, 1000))
def test_a_square_factor_may_be_drawn_out_of_a_root(radicand, factor):
    assert same(rf"\sqrt{{{radicand * factor**2}}}", rf"{factor}\sqrt{{{radicand}}}") is True
    assert same(rf"\sqrt{{{radicand * factor**2 + 1}}}", rf"{factor}\sqrt{{{radicand}}}") is False


def test_a_verdict_does_not_depend_on_what_came_before():
    pair = (r"\frac{\sin x}{x}+y", r"y+\frac{\sin x}{x+10^{-9}}")
    assert {same(*pair) for _ in range(20)} == {False}
