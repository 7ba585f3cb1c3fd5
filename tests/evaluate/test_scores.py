from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from priml.evaluate.scores import accuracy, difference, pass_at_k


@pytest.mark.parametrize(("right", "problems"), [(0, 30), (1, 30), (30, 30), (256, 256), (400, 1000), (1, 1)])
def test_with_one_response_a_problem_the_interval_is_that_of_wilson(right, problems):
    found = accuracy([1.0] * right + [0.0] * (problems - right))
    wilson = binomtest(right, problems).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(wilson.low, abs=1e-9), pytest.approx(wilson.high, abs=1e-9))
    assert found.low <= found.mean == right / problems <= found.high
    assert found.high - found.low > 0


def test_responses_count_by_how_alike_those_to_one_problem_are():
    all_or_nothing = accuracy([1.0] * 10 + [0.0] * 20, responses=480)
    independent = accuracy([5 / 16, 6 / 16, 5 / 16] * 10, responses=480)
    thirty, many = accuracy([1.0] * 10 + [0.0] * 20), accuracy([1.0] * 160 + [0.0] * 320)
    width = [found.high - found.low for found in (many, independent, thirty, all_or_nothing)]
    assert width == sorted(width), "at most all responses count, at least all problems"
    assert width[0] > 0.9 * width[1]  # the rest is Student's quantile
    assert width[2] > 0.9 * width[3]


def test_without_any_spread_responses_prove_no_more_than_problems():
    assert accuracy([0.0] * 30, responses=480).high > accuracy([0.0] * 30).high > 0.1
    assert accuracy([1.0], responses=16) == accuracy([1.0])


CONCENTRATIONS = {"equal": None, "spread": 2.0, "all or nothing": 0.3}


def coverage(mean: float, samples: int, concentration: float | None, *, problems: int = 30, draws: int = 4000) -> float:
    """How often the interval holds the mean, when the solve rates of problems have a Beta distribution."""
    rng = np.random.default_rng(0)
    holding = 0
    for _ in range(draws):
        beta = None if concentration is None else rng.beta(mean * concentration, (1 - mean) * concentration, problems)
        found = accuracy(
            rng.binomial(samples, mean if beta is None else beta, problems) / samples, responses=problems * samples
        )
        holding += found.low <= mean <= found.high
    return holding / draws


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("concentration", CONCENTRATIONS.values(), ids=CONCENTRATIONS)
@pytest.mark.parametrize("mean", [0.03, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_interval_of_thirty_problems_holds_the_true_value(mean, concentration, samples):
    assert coverage(mean, samples, concentration) >= (0.85 if mean < 0.1 else 0.92)


def test_equal_scores_leave_a_difference_some_width():
    found = difference([0.0] * 30)
    assert (found.mean, found.low, found.high) == (0.0, -found.high, pytest.approx(1.96 / 32, rel=1e-3))
    assert difference([1.0] * 30).high == 1.0 > difference([1.0] * 30).low > 0.8
    paired = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.8, 0.1])
    half = 1.96 * paired.std() / np.sqrt(2000)
    assert difference(paired.tolist()).high == pytest.approx(paired.mean() + half, abs=0.002)


@pytest.mark.parametrize(
    ("samples", "correct", "k", "chance"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 1 - 1 / 6), (5, 3, 3, 1.0), (10, 0, 5, 0.0), (3, 3, 1, 1.0)],
)
def test_pass_at_k_by_hand(samples, correct, k, chance):
    assert pass_at_k(samples, correct, k) == pytest.approx(chance)


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_one(samples, data):
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0)])
def test_impossible_counts_are_refused(samples, correct, k):
    with pytest.raises(AssertionError):
        pass_at_k(samples, correct, k)
