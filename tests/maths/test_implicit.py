"""Implicit rewards, their prefix sums (the paper's Q values) and their gathering into steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.maths.implicit import implicit_rewards, prefix_q, step_rewards, whole_response_reward

NAN = float("nan")
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
REWARDS = torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, NAN, NAN]])


def test_rewards_are_the_scaled_log_ratio_and_zero_on_padding() -> None:
    prm = torch.tensor([[-1.0, -2.0, NAN]])
    ref = torch.tensor([[-3.0, -1.0, NAN]])
    rewards = implicit_rewards(prm, ref, torch.tensor([[True, True, False]]), beta=0.5)
    assert rewards.tolist() == [[1.0, -0.5, 0.0]]


def test_a_prm_equal_to_its_reference_gives_no_reward() -> None:
    logprobs = torch.randn(3, 5)
    assert not implicit_rewards(logprobs, logprobs, torch.ones(3, 5, dtype=torch.bool), beta=0.05).any()


def test_beta_zero_gives_zero_reward() -> None:
    assert not implicit_rewards(
        torch.randn(2, 3), torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool), beta=0.0
    ).any()


@pytest.mark.parametrize("beta", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_prefix_sums_are_the_soft_value_of_continuations_under_the_reference(seed: int, beta: float) -> None:
    """Proposition 3.1 of the implicit-PRM paper, by enumerating every response of a 3-token, length-4 model.

    q_t = beta * log E[ exp(R(y') / beta) ] over continuations y' of the prefix, drawn from the reference.
    """
    vocabulary, length = 3, 4
    generator = torch.Generator().manual_seed(seed)

    def random_model() -> dict[tuple[int, ...], torch.Tensor]:
        prefixes = [p for n in range(length) for p in itertools.product(range(vocabulary), repeat=n)]
        return {p: torch.randn(vocabulary, generator=generator, dtype=torch.float64).log_softmax(0) for p in prefixes}

    prm, ref = random_model(), random_model()
    responses = list(itertools.product(range(vocabulary), repeat=length))

    def logprobs(model: dict[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
        return torch.stack([torch.stack([model[y[:t]][y[t]] for t in range(length)]) for y in responses])

    prm_BT, ref_BT = logprobs(prm), logprobs(ref)
    mask_BT = torch.ones_like(prm_BT, dtype=torch.bool)
    rewards_BT = implicit_rewards(prm_BT, ref_BT, mask_BT, beta=beta)
    q_BT = prefix_q(rewards_BT, mask_BT)
    outcome_B = rewards_BT.sum(1)

    for t in range(length):
        for row, y in enumerate(responses):
            same_prefix = torch.tensor([other[: t + 1] == y[: t + 1] for other in responses])
            continuation = ref_BT[same_prefix, t + 1 :].sum(1)  # log-probability of each continuation
            soft_value = beta * torch.logsumexp(continuation + outcome_B[same_prefix] / beta, 0)
            torch.testing.assert_close(q_BT[row, t], soft_value, atol=1e-12, rtol=1e-12)


def test_each_step_sum_stands_at_its_end() -> None:
    got = step_rewards(REWARDS, MASK, [[1, 3], [0, 1]])
    assert got.tolist() == [[0.0, 3.0, 0.0, 12.0], [16.0, 32.0, 0.0, 0.0]]


def test_an_unfinished_last_step_goes_to_the_last_token() -> None:
    assert step_rewards(REWARDS, MASK, [[0], []]).tolist() == [[1.0, 0.0, 0.0, 14.0], [0.0, 48.0, 0.0, 0.0]]


def test_whole_response_reward_is_a_single_step() -> None:
    assert whole_response_reward(REWARDS, MASK).tolist() == [[0.0, 0.0, 0.0, 15.0], [0.0, 48.0, 0.0, 0.0]]


def test_every_token_a_step_leaves_rewards_as_they_are() -> None:
    got = step_rewards(REWARDS, MASK, [[0, 1, 2, 3], [0, 1]])
    torch.testing.assert_close(got, REWARDS.masked_fill(~MASK, 0.0))


@given(seed=st.integers(0, 2**16), data=st.data())
@settings(max_examples=40, deadline=None)
def test_steps_keep_the_total_of_the_response(random_batch: Callable[..., Any], seed: int, data: st.DataObject) -> None:
    b = random_batch(seed)
    ends = [sorted(data.draw(st.sets(st.integers(0, int(n) - 1)))) for n in b.mask_BT.sum(1)]
    steps_BT = step_rewards(b.rewards_BT, b.mask_BT, ends)
    torch.testing.assert_close(steps_BT.sum(1), b.rewards_BT.masked_fill(~b.mask_BT, 0.0).sum(1))
    for row, row_ends in enumerate(ends):
        allowed = {*row_ends, int(b.mask_BT[row].sum()) - 1}
        assert set(steps_BT[row].nonzero().flatten().tolist()) <= allowed


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([[1, 4], [0]], r"step_ends\[0\]: 4 is not a valid token"),
        ([[1], [2]], r"step_ends\[1\]: 2 is not a valid token of the response, which has 2"),
        ([[-1], [0]], r"step_ends\[0\]: -1 is not"),
        ([[0], [1, 1]], r"step_ends\[1\]: 1 follows 1"),
        ([[2, 1], [0]], r"step_ends\[0\]: 1 follows 2"),
        ([[0]], "1 lists for 2 responses"),
    ],
)
def test_step_ends_that_do_not_increase_or_lie_outside_are_refused(ends: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_rewards(REWARDS, MASK, ends)
