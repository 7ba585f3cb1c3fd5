import numpy as np
import pyarrow as pa
import pytest

from priml.report.trust import TrustCard, trust_card


def rows(scores, right, *, tokens=None, per_prompt=4, steps=1) -> pa.Table:
    count = len(scores)
    return pa.table(
        {
            "step": [1 + i * steps // count for i in range(count)],
            "problem_id": [f"p{i // per_prompt}" for i in range(count)],
            "verdict": ["correct" if one else "wrong" for one in right],
            "paid": pa.array(scores, pa.float32()),
            "tokens": pa.array(tokens or [10] * count, pa.int32()),
        }
    )


def drawn(separation: float, count: int = 400, seed: int = 0) -> TrustCard:
    rng = np.random.default_rng(seed)
    right = rng.random(count) < 0.5
    card = trust_card(rows(list(rng.normal(separation * right, 1.0)), list(right)), {})
    assert card is not None
    return card


@pytest.mark.parametrize(
    ("separation", "sentence", "advice"),
    [
        (3.0, "It can be trusted", 0),
        (0.6, "It knows something", 0),
        (0.0, "told from chance", 1),
        (-2.0, "mistaken", 1),
    ],
)
def test_the_sentence_is_no_kinder_than_the_interval(separation: float, sentence: str, advice: int):
    card = drawn(separation)
    assert sentence in card.sentence
    assert len(card.advice) == advice
    assert card.pairs.low <= card.pairs.mean <= card.pairs.high


def test_worse_than_chance_is_called_that():
    assert "worse than chance" in drawn(-2.0).sentence


def test_ties_count_one_half():
    card = trust_card(rows([1.0, 1.0, 1.0, 1.0] * 5 + [2.0, 1.0], [True, False] * 11), {})
    assert card is not None
    assert card.pairs.mean == pytest.approx((5 * 0.5 + 1.0) / 6)


def test_pairs_are_within_a_prompt_and_the_area_is_not():
    # Each prompt orders its own the right way, and an easy prompt is paid less as a whole.
    scores = [1.0, 0.9, 0.8, 0.1, 5.0, 4.0, 4.0, 4.0]
    card = trust_card(rows(scores, [True, True, True, False, True, False, False, False]), {})
    assert card is not None
    assert card.pairs.mean == 1.0
    assert card.auc.mean < 1.0


def test_length_is_judged_among_responses_of_one_outcome():
    right = [True, False] * 40
    tokens = [30 if one else 10 for one in right]  # right ones are longer, and that is no bias
    scores = [1.0 + 0.01 * i if one else 0.01 * (i % 7) for i, one in enumerate(right)]
    card = trust_card(rows(scores, right, tokens=tokens), {})
    assert card is not None
    assert card.length is None
    longer = [count + i % 5 for i, count in enumerate(tokens)]
    biased = trust_card(rows([score + 3 * (i % 5) for i, score in enumerate(scores)], right, tokens=longer), {})
    assert biased is not None
    assert biased.length is not None
    assert biased.length > 0.9
    assert any("Longer responses are paid more" in line for line in biased.advice)


@pytest.mark.parametrize(
    ("scores", "right"),
    [([], []), ([None, None], [True, False]), ([0.0, 0.0], [True, False]), ([1.0, 2.0], [True, True])],
)
def test_where_nothing_was_paid_or_all_are_right_nothing_is_claimed(scores: list, right: list):
    assert trust_card(rows(scores, right), {}) is None


def test_the_last_steps_are_judged():
    card = trust_card(rows([1.0, 0.0] * 20, [False, True] * 10 + [True, False] * 10, per_prompt=2, steps=20), {})
    assert card is not None
    assert card.steps == (11, 20)
    assert card.pairs.mean == 1.0


def test_rewards_after_learning_are_called_flattering():
    card = trust_card(rows([1.0, 0.0], [True, False]), {"prm": {"forward": "double"}})
    assert card is not None
    assert any("flatters" in line for line in card.advice)


def test_reliability_rises_with_pay_where_pay_means_something():
    shares = drawn(3.0).reliability.series[0].values
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
