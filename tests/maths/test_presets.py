"""Every preset with every estimator, with and without PRIME, against numbers worked by hand.

One prompt, two responses, beta = 1/2:

    A  two tokens, outcome 1, log-ratios d = 4, 2, so rewards r = 2, 1
    B  one token,  outcome 0, log-ratio  d = -2,   so reward  r = -1

What a preset scores a token with:

    paper    r             A: 2, 1      means  3/2 and -1
                           B: -1
    authors  d / 6         A: 2/3, 1/3  means  1/2 and -1/3    (6 = 4 + 2 is the largest reward-to-go)
                           B: -1/3
    priml    as authors; a token is paid for itself alone, twice
    verl     r / 2, the    A: 1, 0      means  1/2 and 0       (2 is what is left of it without the last tokens)
             last dropped  B: 0
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from statistics import mean, stdev

import pytest
import torch
from torch import Tensor

from priml.maths.advantages import ESTIMATORS, PRESETS, estimate_advantages

ROOT2 = math.sqrt(2)
CLOSE = {"rel": 1e-5, "abs": 1e-5}
"""The two published epsilons of 1e-6, under a deviation and under the largest return, are left out below."""
OUTCOMES = torch.tensor([1.0, 0.0], dtype=torch.float64)
REWARDS = torch.tensor([[2.0, 1.0], [-1.0, float("nan")]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.25], [0.5, float("nan")]], dtype=torch.float64)
MASK = torch.tensor([[True, True], [True, False]])
GROUPS = torch.tensor([3, 3])

# Advantages of A's two tokens and B's one, before whitening: sums from the token on, process + outcome.
WITH_PRIME = {
    # Outcomes less the other's: 1 and -1. Baseline of A is B's mean and the other way round.
    ("rloo", "paper"): [(3 + 2) + 1, 2 + 1, -2.5 - 1],
    # 2 s - (1/2 - 1/3) per token: 7/6, 1/2 and -5/6.
    ("rloo", "authors"): [(7 / 6 + 1 / 2) + 1, 1 / 2 + 1, -5 / 6 - 1],
    # The same, each token alone and twice.
    ("rloo", "priml"): [2 * (7 / 6) + 1, 2 * (1 / 2) + 1, 2 * (-5 / 6) - 1],
    # 2 s - (1/2 + 0) per token: 3/2, -1/2 and -1/2.
    ("rloo", "verl"): [5 * ((3 / 2 - 1 / 2) + 1), 5 * (-1 / 2 + 1), 5 * (-1 / 2 - 1)],
    # Outcomes: +-(1/2) / sqrt(1/2) = +-sqrt(2)/2. Means 3/2, -1: middle 1/4, deviation 5/2 / sqrt(2).
    ("grpo", "paper"): [ROOT2 * (1.75 + 0.75) / 2.5 + ROOT2 / 2, ROOT2 * 0.75 / 2.5 + ROOT2 / 2, -ROOT2],
    # All scores are a third of the paper's, which z-scores do not see.
    ("grpo", "authors"): [ROOT2 * 1.5, ROOT2 * 0.8, -ROOT2],
    ("grpo", "priml"): [2 * ROOT2 * 0.7 + ROOT2 / 2, 2 * ROOT2 * 0.3 + ROOT2 / 2, -2 * ROOT2 * 0.5 - ROOT2 / 2],
    # Means 1/2, 0: middle 1/4, deviation 1/2 / sqrt(2): z per token 3/2, -1/2 and -1/2, times sqrt(2).
    ("grpo", "verl"): [5 * ROOT2 * (1 + 0.5), 5 * ROOT2 * (-0.5 + 0.5), 5 * ROOT2 * (-0.5 - 0.5)],
    # The same without the deviations: outcomes +-1/2.
    ("dr_grpo", "paper"): [(1.75 + 0.75) + 0.5, 0.75 + 0.5, -1.25 - 0.5],
    ("dr_grpo", "authors"): [(7 / 12 + 3 / 12) + 0.5, 3 / 12 + 0.5, -5 / 12 - 0.5],
    ("dr_grpo", "priml"): [2 * 7 / 12 + 0.5, 2 * 3 / 12 + 0.5, -2 * 5 / 12 - 0.5],
    ("dr_grpo", "verl"): [5 * ((0.75 - 0.25) + 0.5), 5 * (-0.25 + 0.5), 5 * (-0.25 - 0.5)],
    # Sums as they are.
    ("reinforce", "paper"): [(2 + 1) + 1, 1 + 1, -1 + 0],
    ("reinforce", "authors"): [(2 / 3 + 1 / 3) + 1, 1 / 3 + 1, -1 / 3 + 0],
    ("reinforce", "priml"): [2 * 2 / 3 + 1, 2 * 1 / 3 + 1, -2 * 1 / 3 + 0],
    ("reinforce", "verl"): [5 * ((1 + 0) + 1), 5 * (0 + 1), 5 * (0 + 0)],
    # The same; always whitened.
    ("reinforce_pp", "paper"): [4, 2, -1],
    ("reinforce_pp", "authors"): [2, 4 / 3, -1 / 3],
    ("reinforce_pp", "priml"): [7 / 3, 5 / 3, -2 / 3],
    ("reinforce_pp", "verl"): [10, 5, 0],
    # With gamma = lambda = 1: the same less the values 1/2, 1/4 and 1/2.
    ("ppo", "paper"): [4 - 0.5, 2 - 0.25, -1 - 0.5],
    ("ppo", "authors"): [2 - 0.5, 4 / 3 - 0.25, -1 / 3 - 0.5],
    ("ppo", "verl"): [10 - 0.5, 5 - 0.25, 0 - 0.5],
    # Outcome less the rewards before the token, 0, 2 and 0, in units of beta * d whatever the preset's scale.
    ("prime_value", "paper"): [1 - 0, 1 - 2, 0 - 0],
    ("prime_value", "authors"): [1 - 0, 1 - 2, 0 - 0],
    ("prime_value", "priml"): [1 - 0, 1 - 2 * 2, 0 - 0],
    ("prime_value", "verl"): [5 * (1 - 0), 5 * (1 - 2), 5 * (0 - 0)],
}
# Without process rewards the presets differ in verl's factor 5 and in whitening.
OUTCOME_ONLY = {
    "rloo": [1, 1, -1],
    "grpo": [ROOT2 / 2, ROOT2 / 2, -ROOT2 / 2],
    "dr_grpo": [0.5, 0.5, -0.5],
    "reinforce": [1, 1, 0],
    "reinforce_pp": [1, 1, 0],
    "ppo": [1 - 0.5, 1 - 0.25, 0 - 0.5],
    "prime_value": [1, 1, 0],
}


def white(numbers: list[float]) -> list[float]:
    middle, deviation = mean(numbers), stdev(numbers)
    return [(x - middle) / deviation for x in numbers]


def estimate(estimator: str, preset: str, *, rewards: Tensor = REWARDS, **options: float | bool) -> list[float]:
    advantages = estimate_advantages(
        OUTCOMES, rewards, MASK, GROUPS, estimator=estimator, preset=preset, beta=0.5, values_BT=VALUES, **options
    )
    assert advantages[1, 1] == 0, "padding"
    return advantages[MASK].tolist()


def test_no_pair_is_forgotten() -> None:
    one_discount = ("ppo", "priml")  # which has two
    assert set(WITH_PRIME) == set(product(ESTIMATORS, PRESETS)) - {one_discount}
    assert set(OUTCOME_ONLY) == set(ESTIMATORS)


@pytest.mark.parametrize(("estimator", "preset"), WITH_PRIME)
def test_with_prime(estimator: str, preset: str) -> None:
    expected = WITH_PRIME[estimator, preset]
    is_always_white = estimator == "reinforce_pp"
    assert estimate(estimator, preset, whiten=False) == pytest.approx(
        white(expected) if is_always_white else expected, **CLOSE
    )
    is_white = PRESETS[preset].whiten or is_always_white
    assert estimate(estimator, preset) == pytest.approx(white(expected) if is_white else expected, **CLOSE)


@pytest.mark.parametrize(("estimator", "preset"), WITH_PRIME)
def test_without_prime(estimator: str, preset: str) -> None:
    expected = OUTCOME_ONLY[estimator]
    if preset == "verl":
        values = [0.5, 0.25, 0.5] if estimator == "ppo" else [0, 0, 0]
        expected = [5 * (x + v) - v for x, v in zip(expected, values, strict=True)]
    if PRESETS[preset].whiten or estimator == "reinforce_pp":
        expected = white(expected)
    assert estimate(estimator, preset, rewards=torch.zeros_like(REWARDS)) == pytest.approx(expected, **CLOSE)


def test_lambda_looks_less_far_ahead() -> None:
    # Paid: A 2 and 1 + 1, B -1. delta = paid + next value - value: A 2 + .25 - .5, 2 - .25; B -1 - .5.
    # Half of the later delta counts for the earlier token.
    expected = [1.75 + 0.5 * 1.75, 1.75, -1.5]
    assert estimate("ppo", "paper", gae_lambda=0.5) == pytest.approx(expected)


def test_ppo_has_one_discount() -> None:
    # gamma = 1/2: A 2 + (1 + 1)/2 - .5, 2 - .25.
    assert estimate("ppo", "paper", gamma_process=0.5, gamma_outcome=0.5) == pytest.approx([2.5, 1.75, -1.5])
    with pytest.raises(ValueError, match=r"gamma_process=0.5, gamma_outcome=1.0: .* one discount for both"):
        estimate("ppo", "paper", gamma_process=0.5)


def test_a_preset_of_ones_own_varies_one_that_exists() -> None:
    mine = replace(PRESETS["paper"], coef_process=2.0)
    got = estimate_advantages(OUTCOMES, REWARDS, MASK, GROUPS, estimator="reinforce", preset=mine)
    assert got[MASK].tolist() == [7.0, 3.0, -2.0]
