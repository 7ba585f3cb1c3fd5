import math

import pytest

from priml.data.process_files import CORRECT, ScoredSteps
from priml.evaluate.prm_bench import best_prm_threshold, prm_bench


def solution(kind: str, scores: list[float], wrong: set[int], twin: str = "p") -> ScoredSteps:
    return ScoredSteps(scores=tuple(scores), wrong_steps=frozenset(wrong), classification=kind, twin=twin)


ROWS = [
    solution(CORRECT, [1.0, 1.0, -1.0, 1.0], set()),
    # right called right, wrong called wrong, wrong called right, right called wrong
    solution("circular", [1.0, -1.0, 1.0, -1.0], {1, 2}),
    solution("confidence", [1.0, 1.0, -1.0], {2}),
    solution("multi_solutions", [1.0, 1.0, -1.0], set(), twin="q"),
]


def test_counts_become_scores_as_the_authors_define_them():
    found = prm_bench(ROWS, 0.0)
    total = found["total"]
    # Right steps: 1 + 2 + 3 = 6, of which 1 + 2 + 2 are called right; wrong: 3, of which 1 + 1 are called wrong.
    precision, recall = 5 / 6, 5 / 7
    # right_right = 5, wrong_called_right = 1, right_called_wrong = 2, wrong_wrong = 2
    assert total["steps"] == 10
    assert total["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    precision, recall = 2 / 4, 2 / 3
    assert total["negative_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert total["prm_score"] == pytest.approx((total["f1"] + total["negative_f1"]) / 2)
    assert total["accuracy"] == pytest.approx(7 / 10)
    assert total["right_steps"] == pytest.approx(5 / 7)
    assert total["wrong_steps"] == pytest.approx(2 / 3)
    assert total["first_error"] == 1.0


def test_unmodified_solutions_count_in_no_total_but_are_compared_with():
    found = prm_bench(ROWS, 0.0)
    assert set(found["classes"]) == {"circular", "confidence", "multi_solutions"}
    # The twin has 3/4 called right; circular 1/2, confidence 2/3; multi_solutions has no twin here.
    assert found["classes"]["circular"]["similarity"] == pytest.approx(1 / 4)
    assert found["total"]["similarity"] == pytest.approx((1 / 4 + 1 / 12) / 2)
    assert found["classes"]["multi_solutions"]["similarity"] is None


def test_a_class_without_wrong_steps_is_scored_by_its_right_ones():
    found = prm_bench(ROWS, 0.0)["classes"]["multi_solutions"]
    assert found["prm_score"] == found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert found["negative_f1"] is None
    assert found["first_error"] is None


def test_a_step_at_the_threshold_is_called_wrong():
    found = prm_bench([solution("circular", [0.0, 1.0], {0})], 0.0)["total"]
    assert found["prm_score"] == 1.0


def test_where_nothing_is_called_wrong_the_negative_f1_is_zero():
    found = prm_bench([solution("circular", [1.0, 1.0], {0})], 0.0)["total"]
    assert found["negative_f1"] == 0.0


def test_the_best_threshold_tells_the_two_kinds_apart_where_that_is_possible():
    rows = [solution("circular", [3.0, 1.0, 2.5], {1}), solution("confidence", [0.5, 2.0], {0})]
    threshold = best_prm_threshold(rows)
    assert 1.0 <= threshold < 2.0
    assert prm_bench(rows, threshold)["total"]["prm_score"] == 1.0
    assert math.isfinite(best_prm_threshold([solution("circular", [0.0, 0.0], {0})]))
