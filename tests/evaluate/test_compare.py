from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from priml.evaluate.compare import adjust, compare, comparison_table


def test_one_response_a_problem_is_an_exact_mcnemar_test():
    first, second = [0.0] * 10 + [1.0] * 22, [1.0] * 8 + [0.0] * 2 + [0.0] * 2 + [1.0] * 20
    found = compare("amc", "greedy", first, second)
    # 8 problems got better and 2 worse.
    assert (found.test, found.p_value) == ("mcnemar", pytest.approx(2 * binom.cdf(2, 10, 0.5)))
    assert found.gain.mean == pytest.approx(6 / 32)
    assert found.gain.low < 6 / 32 < found.gain.high


def test_mean_outcomes_are_compared_by_all_signs_of_their_differences():
    gains = [0.5, 0.25, 0.75, -0.25, 0.0]
    found = compare("aime24", "sampled", [0.25] * 5, [0.25 + gain for gain in gains])
    sums = [abs(sum(s * g for s, g in zip(signs, gains[:4], strict=True))) for signs in product((1, -1), repeat=4)]
    assert found.test == "permutation"
    assert found.p_value == pytest.approx(np.mean([s >= abs(sum(gains)) - 1e-12 for s in sums]))


def test_equal_evaluations_show_no_difference_and_say_what_could_have_been_seen():
    found = compare("a", "greedy", [0.0, 1.0] * 15, [0.0, 1.0] * 15)
    assert (found.p_value, found.gain.mean) == (1.0, 0.0)
    assert 0.05 < found.visible < 0.2
    assert compare("a", "sampled", [0.25] * 4, [0.25] * 4).p_value == 1.0
    assert compare("a", "sampled", [0.25] * 4, [0.25] * 3 + [0.5]).p_value == 1.0


def test_holm_multiplies_the_smallest_by_the_number_and_never_turns_the_order_around():
    def with_p(worse: int):
        return compare("a", "greedy", [0.0] * 20 + [1.0] * worse, [1.0] * 20 + [0.0] * worse)

    found = [with_p(10), with_p(5), with_p(18), with_p(9)]
    p = [one.p_value for one in found]
    adjusted = [one.adjusted for one in adjust(found)]
    assert adjusted[1] == pytest.approx(4 * p[1])
    assert adjusted[3] == pytest.approx(3 * p[3])
    assert adjusted[0] == pytest.approx(max(adjusted[3], 2 * p[0]))
    assert adjusted[2] == pytest.approx(max(adjusted[0], p[2]))
    assert adjust([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 16])
def test_two_evaluations_of_one_model_rarely_differ(samples, monkeypatch):
    monkeypatch.setattr("priml.evaluate.compare._DRAWS", 999)  # as valid as more of them, and quicker
    rng = np.random.default_rng(samples)
    draws, wrong = 1500, 0
    for _ in range(draws):
        rates = rng.beta(0.6, 0.6, 30)
        first, second = (rng.binomial(samples, rates) / samples for _ in range(2))
        wrong += compare("a", "sampled", first.tolist(), second.tolist()).p_value <= 0.05
    assert wrong / draws <= 0.055


def test_the_difference_that_is_called_visible_is_mostly_found():
    rng = np.random.default_rng(0)
    better = np.array([1.0] * 40 + [0.0] * 460)
    seen = 0
    visible = compare("a", "greedy", np.zeros(500), rng.permutation(better)).visible
    for _ in range(400):
        changed = rng.choice([-1, 0, 1], 500, p=[0.02, 0.98 - 0.02 - visible, 0.02 + visible])
        first = np.where(changed == 1, 0.0, 1.0)
        seen += compare("a", "greedy", first.tolist(), (first + changed).tolist()).p_value <= 0.05
    assert seen / 400 > 0.6


def test_the_table_has_a_line_for_each_comparison():
    found = compare("aime24", "greedy", [0.0, 1.0], [1.0, 1.0])
    table = comparison_table([found], {"aime24 greedy": (0.5, 1.0)}).splitlines()
    assert table[1].split()[:5] == ["aime24", "greedy", "50.0", "100.0", "+50.0"]
