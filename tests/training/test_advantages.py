"""The estimator as the loop calls it: what the settings say reaches the mathematics, and returns are not whitened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from priml.batch import Batch, Row, collate
from priml.learners.base import ProcessRewards
from priml.maths.advantages import estimate_advantages
from priml.training.advantages import LocalAdvantages, OverlongPenalty


def a_batch() -> Batch:
    rows = [Row((1, 2), range(n), float(n % 2), 0, (n - 1,)) for n in (5, 2, 4)]
    return collate(rows, step=3)


def test_without_a_prm_the_advantages_are_those_of_process_rewards_of_zero() -> None:
    batch = a_batch()
    estimator = LocalAdvantages(estimator="rloo", preset="authors")
    zeros = ProcessRewards(torch.zeros(batch.mask_BT.shape))
    expected = estimator.estimate(batch, zeros, 1.0)
    found = estimator.estimate(batch, None, 1.0)
    assert torch.equal(found.advantages_BT, expected.advantages_BT)
    assert found.returns_BT is None


def test_the_weight_of_the_process_reward_is_that_of_the_step_times_the_factor() -> None:
    batch, process = a_batch(), ProcessRewards(torch.randn(3, 5), beta=0.05)
    estimator = LocalAdvantages(estimator="rloo", preset="authors", process_weight_at=lambda step: 0.1 * step)
    expected_BT = estimate_advantages(
        batch.outcomes_B,
        process.rewards_BT,
        batch.mask_BT,
        batch.groups_B,
        estimator="rloo",
        preset="authors",
        beta=0.05,
        process_weight=0.1 * 3 * 0.5,
    )
    assert torch.equal(estimator.estimate(batch, process, 0.5).advantages_BT, expected_BT)


def test_returns_are_advantages_plus_values_before_whitening() -> None:
    batch = replace(a_batch(), values_BT=torch.rand(3, 5))
    found = LocalAdvantages(estimator="ppo", preset="authors", gae_lambda=1.0).estimate(batch, None, 1.0)
    # Nothing but the outcome is paid, and lambda is 1: the outcome is the return of every token.
    assert found.returns_BT is not None
    torch.testing.assert_close(
        found.returns_BT[batch.mask_BT], (batch.outcomes_B[:, None] * batch.mask_BT)[batch.mask_BT]
    )
    assert float(found.advantages_BT[batch.mask_BT].mean()) == pytest.approx(0.0, abs=1e-6)


def test_the_overlong_penalty_is_taken_from_the_outcome() -> None:
    overlong = OverlongPenalty(limit=5, window=2)
    estimator = LocalAdvantages(estimator="reinforce", preset="paper", overlong=overlong)
    found = estimator.estimate(a_batch(), None, 1.0)
    # Outcomes are 1, 0, 0; the lengths 5, 2, 4 lose 1, 0 and 1/2.
    assert found.advantages_BT[:, 0].tolist() == [0.0, 0.0, -0.5]


def test_observations_make_no_response_overlong() -> None:
    rows = [
        Row((1, 2), range(n + 9), 1.0, 0, (n - 1,), is_trained=np.array([True] + 9 * [False] + (n - 1) * [True]))
        for n in (5, 2, 4)
    ]
    estimator = LocalAdvantages(estimator="reinforce", preset="paper", overlong=OverlongPenalty(limit=5, window=2))
    found = estimator.estimate(collate(rows, step=3), None, 1.0)
    assert found.advantages_BT[:, 0].tolist() == [0.0, 1.0, 0.5]
