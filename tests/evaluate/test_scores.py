from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.evaluate.scores import accuracy, pass_at_k


def test_the_interval_of_a_large_coin_toss_is_the_normal_one():
    values = [1.0] * 400 + [0.0] * 600
    found = accuracy(values)
    half = 1.96 * np.sqrt(0.4 * 0.6 / 1000)
    assert found.mean == 0.4
    assert found.n == 1000
    assert found.low == pytest.approx(0.4 - half, abs=0.003)
    assert found.high == pytest.approx(0.4 + half, abs=0.003)


def test_the_interval_of_two_problems_is_that_of_the_three_possible_means():
    # Resampling (0, 1) gives means 0, 0.5, 1 with chances 1/4, 1/2, 1/4.
    found = accuracy([0.0, 1.0])
    assert (found.low, found.mean, found.high) == (0.0, 0.5, 1.0)


def test_equal_values_leave_no_width_and_the_answer_is_repeatable():
    assert asdict(accuracy([0.25] * 7)) == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 7}
    values = np.random.default_rng(1).random(50).tolist()
    assert accuracy(values) == accuracy(values)


def test_resampling_in_slices_covers_all_resamples():
    large = accuracy(np.random.default_rng(0).random(2_000).tolist())
    half = 1.96 * np.sqrt(1 / 12 / 2_000)
    assert large.high - large.low == pytest.approx(2 * half, rel=0.1)


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
