import math
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.evaluate.ranking import (
    AGGREGATES,
    MAX_SUBSETS,
    Candidate,
    best_of_n,
    expectations,
    rank,
    same_answers,
    subsets,
    vote,
)
from priml.evaluate.scores import pass_at_k


def test_the_four_scores_of_a_response():
    rewards = (0.5, -1.0, 0.25)
    assert {how: score(rewards) for how, score in AGGREGATES.items()} == {
        "min": -1.0,
        "mean": pytest.approx(-0.25 / 3),
        "sum": -0.25,
        "last": 0.25,
    }


def test_best_of_n_by_hand():
    # Scores say 3 > 2 > 1; of two, the pick is the first unless it is absent.
    assert best_of_n([1, 0, 0], [3, 2, 1], 2) == pytest.approx(2 / 3)
    assert best_of_n([0, 1, 0], [3, 2, 1], 2) == pytest.approx(1 / 3)
    assert best_of_n([0, 1, 0], [3, 2, 1], 3) == 0.0
    assert best_of_n([0, 1], [1, 1], 2) == 0.5  # a tie is decided by lot


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3)), min_size=1, max_size=7),
    st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_best_of_n_is_the_mean_over_all_subsets(rows: list[tuple[float, int]], n: int):
    n = min(n, len(rows))

    def pick(subset: tuple[tuple[float, int], ...]) -> float:
        most = max(score for _, score in subset)
        found = [outcome for outcome, score in subset if score == most]
        return sum(found) / len(found)

    picks = [pick(subset) for subset in combinations(rows, n)]
    outcomes, scores = zip(*rows, strict=True)
    assert best_of_n(outcomes, scores, n) == pytest.approx(sum(picks) / len(picks))


def test_the_oracle_is_pass_at_n():
    outcomes = [1.0, 0.0, 0.0, 1.0, 0.0]
    for n in range(1, 6):
        assert best_of_n(outcomes, outcomes, n) == pytest.approx(pass_at_k(5, 2, n))


def test_a_vote_goes_by_weight_and_ties_share():
    answers, outcomes = [1, 1, 2, None], [0.0, 0.0, 1.0, 0.0]
    assert vote(answers, outcomes, [1, 1, 1, 9]) == 0.0
    assert vote(answers, outcomes, [1, 1, 3, 9]) == 1.0
    assert vote(answers, outcomes, [1, 1, 2, 9]) == 0.5
    assert vote([None, None], [0.0, 1.0], [1, 1]) == 0.5


def test_few_subsets_are_all_taken_and_many_are_drawn():
    assert list(subsets(4, 2, seed=0)) == list(combinations(range(4), 2))
    drawn = list(subsets(40, 8, seed=0))
    assert len(drawn) == MAX_SUBSETS
    assert all(len(set(subset)) == 8 for subset in drawn)
    assert drawn == list(subsets(40, 8, seed=0))
    assert drawn != list(subsets(40, 8, seed=1))


def candidate(outcome: float, answer: int | None, *rewards: float) -> Candidate:
    return Candidate(outcome, answer, rewards)


def test_a_good_prm_wins_where_the_majority_is_wrong():
    # Two of three agree on a wrong answer; the PRM sees the wrong step in both.
    problem = [candidate(0, 1, 1.0, -9.0), candidate(0, 1, 1.0, -9.0), candidate(1, 2, 0.5, 0.5)]
    found = expectations(problem, 3, seed=0)
    assert found["majority"] == 0.0
    assert found["best_of/min"] == found["vote/min"] == found["oracle"] == 1.0
    assert found["pass@1"] == pytest.approx(1 / 3)


def test_with_one_response_every_method_is_pass_at_1():
    problem = [candidate(1, 0, 1.0), candidate(0, 1, 2.0), candidate(0, None, 3.0)]
    assert list(expectations(problem, 1, seed=0).values()) == pytest.approx([1 / 3] * 11)


def test_the_curve_doubles_up_to_the_usual_number_of_responses():
    problems = [[candidate(float(i == k % 6), i, float(i == k % 6)) for i in range(6)] for k in range(5)]
    found = rank([*problems, problems[0][:2]], seed=0)
    assert list(found.curve) == [1, 2, 4, 6]
    assert (found.problems, found.left_out) == (5, 1)
    best = found.curve[6]["best_of/sum"]
    assert (best.mean, best.high, best.n) == (1.0, 1.0, 5)
    assert 0 < best.low < 1
    assert found.curve[6]["majority"].mean == pytest.approx(1 / 6)
    gap = found.above_majority["best_of/sum"]
    assert gap.mean == pytest.approx(5 / 6)
    assert gap.low <= gap.mean <= gap.high
    assert set(found.above_majority) == {f"{kind}/{how}" for kind in ("best_of", "vote") for how in AGGREGATES}


def test_answers_that_are_the_same_get_the_same_number():
    def is_same(a: str, b: str) -> bool:
        return math.isclose(eval(a), eval(b))

    assert same_answers(["1/2", None, "0.5", "2", "4/2", "1/2"], is_same) == [0, None, 0, 1, 1, 0]
