import pytest

from priml.graders.math.cost_guard import is_expensive


@pytest.mark.parametrize(
    "text",
    [
        *(
            "9^{9^{9^{9}}}",
            "2^3^4",
            "9^{9^{9}}",
            "(10!)!",
            "9999999!",
            "x^{10000000}",
            "(" * 40,
            "7" * 201,
            r"\sin" * 60,
        ),
        *(r"\sum_{k=1}^{10^{12}} k", r"\prod_{k=1}^{99999} k", r"\int_0^1 x dx", r"\lim_{x\to0} x"),
        *("a_" * 20, "x<" * 20),
    ],
)
def test_bombs_are_recognised(text):
    assert is_expensive(text, "7")


@pytest.mark.parametrize(
    "text", ["x^2+y^2+z^2", "e^{-x^2}", "f(x)^{9}", "5!", r"\frac{4 \cdot 999^{4}}{27}", "20!", "f(x)+f(y)=f(x+y)"]
)
def test_ordinary_powers_and_factorials_are_not_bombs(text):
    assert not is_expensive(text, "7")


def test_sums_and_integrals_may_be_left_undone_only_where_the_gold_does_so():
    answer = r"\sum_{k=0}^{n} \frac{1}{k!}"
    assert not is_expensive(answer, r"\sum_{j=0}^{n} \frac{1}{j!}")
    assert is_expensive(answer, "e")
    assert is_expensive(r"\sum_{k=0}^{10^9} k", r"\sum_{k=0}^{n} k")
