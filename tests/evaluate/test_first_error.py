import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.data.process_files import ScoredSteps
from priml.evaluate.first_error import best_threshold, first_error, localisation, predict, shuffled_scores


def solution(first_wrong: int, *scores: float) -> ScoredSteps:
    return ScoredSteps(scores=scores, wrong_steps=frozenset() if first_wrong == -1 else frozenset([first_wrong]))


def test_the_prediction_is_the_first_step_below_the_threshold():
    assert predict([0.5, -1, -2], 0.0) == 1
    assert predict([0.5, 0.0], 0.0) == -1  # not below


def test_f1_is_the_harmonic_mean_of_both_accuracies():
    solutions = [
        solution(1, 0.5, -1.0),  # found
        solution(1, 0.5, 0.5, -1.0),  # too late
        solution(0, 1.0, 1.0),  # not found
        solution(0, -1.0, 1.0),  # found
        solution(-1, 0.2, 0.1),  # left alone
        solution(-1, 0.2, -0.1),  # accused
        solution(-1, 0.0, 0.0),  # left alone
    ]
    found = first_error(solutions, 0.0)
    assert (found.erroneous, found.correct) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    assert found.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert (found.num_erroneous, found.num_correct) == (4, 3)
    assert 0.0 <= found.low <= found.f1 <= found.high <= 1.0


def test_a_perfect_prm_has_f1_one_and_a_blind_one_zero():
    perfect = first_error([solution(0, -1.0), solution(-1, 1.0)], 0.0)
    assert perfect.f1 == perfect.high == 1.0 > perfect.low
    assert first_error([solution(0, 0.0), solution(-1, 0.0)], 0.0).f1 == 0.0
    assert first_error([solution(0, 0.0)], 1.0).f1 == 0.0  # there is nothing correct to leave alone


SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=5)


@given(st.lists(st.tuples(SCORES, st.integers(-1, 4)), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_the_best_threshold_is_as_good_as_any(rows: list[tuple[list[int], int]]):
    solutions = [solution(min(first, len(scores) - 1), *map(float, scores)) for scores, first in rows]
    chosen = first_error(solutions, best_threshold(solutions)).f1
    for other in (-4.0, -3.0, -2.5, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 3.5):
        assert chosen >= first_error(solutions, other).f1 - 1e-12


def test_scores_are_shuffled_scores_over_all_steps_and_none_is_lost():
    solutions = [solution(1, 1.0, 2.0, 3.0), solution(-1, 4.0), solution(0, 5.0, 6.0)]
    dealt = shuffled_scores(solutions, seed=0)
    assert [(len(s.scores), s.first_wrong) for s in dealt] == [(3, 1), (1, -1), (2, 0)]
    assert sorted(score for s in dealt for score in s.scores) == [1, 2, 3, 4, 5, 6]
    assert dealt == shuffled_scores(solutions, seed=0)
    assert dealt != shuffled_scores(solutions, seed=1)


def test_localisation_needs_no_threshold():
    found = localisation([solution(1, 0.5, -1.0, 0.0), solution(2, -2.0, 1.0, -1.0, 0.0), solution(-1, -9.0)])
    # Wrong: -1, -1; right before: 0.5, -2, 1: right wins 4 of 6.
    assert found == {
        "auc": pytest.approx(4 / 6),
        "hit": 0.5,
        "chance": pytest.approx((1 / 3 + 1 / 4) / 2),
        "solutions": 2,
    }


def test_a_prm_that_says_nothing_hits_nothing():
    found = localisation([solution(0, 0.0, 0.0), solution(1, 0.0, 0.0)])
    assert (found["hit"], found["auc"]) == (0, 0.5)


def test_without_an_error_there_is_nothing_to_locate():
    assert localisation([solution(-1, 1.0)]) == {"auc": None, "hit": None, "chance": None, "solutions": 0}
