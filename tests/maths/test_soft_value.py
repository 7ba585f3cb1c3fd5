"""Why an implicit PRM is a process reward model at all, by enumerating every response of a tiny language."""

import itertools

import pytest
import torch
from torch import Tensor

from priml.maths.implicit import implicit_rewards, prefix_q

VOCABULARY, LENGTH = 3, 4
RESPONSES = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
PREFIXES = [p for n in range(LENGTH + 1) for p in itertools.product(range(VOCABULARY), repeat=n)]


def starting_with(prefix: tuple[int, ...]) -> Tensor:
    return torch.tensor([response[: len(prefix)] == prefix for response in RESPONSES])


def token_logprobs(sequence_logprobs_B: Tensor) -> Tensor:
    """From a distribution over whole responses to that of each token behind its prefix, [B, T]."""
    mass = {prefix: sequence_logprobs_B[starting_with(prefix)].logsumexp(0) for prefix in PREFIXES}
    return torch.stack([torch.stack([mass[y[: t + 1]] - mass[y[:t]] for t in range(LENGTH)]) for y in RESPONSES])


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_best_prm_for_any_reward_has_its_soft_value_in_the_prefix_sums(beta: float):
    """Any reward r on whole responses, and the model `pi*(y) = pi_ref(y) exp(r(y) / beta) / Z` that expresses it:

    the token rewards of pi* sum, over every prefix, to `Q(prefix) - Q(empty)`, where
    `Q(prefix) = beta log E_ref[exp(r / beta) | prefix]`. Nothing is trained and no step was ever labelled. Q(empty) is
    `beta log Z`, the constant per prompt that no normalised model can express.
    """
    generator = torch.Generator().manual_seed(3)
    ref_B = torch.randn(len(RESPONSES), generator=generator, dtype=torch.float64).log_softmax(0)
    reward_B = torch.randn(len(RESPONSES), generator=generator, dtype=torch.float64)
    best_B = (ref_B + reward_B / beta).log_softmax(0)

    mask_BT = torch.ones(len(RESPONSES), LENGTH, dtype=torch.bool)
    q_BT = prefix_q(implicit_rewards(token_logprobs(best_B), token_logprobs(ref_B), mask_BT, beta=beta), mask_BT)

    def soft_value(prefix: tuple[int, ...]) -> Tensor:
        inside = starting_with(prefix)
        continuation_B = ref_B[inside].log_softmax(0)  # the reference, given the prefix
        return beta * (continuation_B + reward_B[inside] / beta).logsumexp(0)

    for row, response in enumerate(RESPONSES):
        expected_T = torch.stack([soft_value(response[: t + 1]) for t in range(LENGTH)]) - soft_value(())
        torch.testing.assert_close(q_BT[row], expected_T, atol=1e-10, rtol=1e-10)


def test_the_response_with_the_best_reward_loses_no_value_at_any_token_when_beta_is_small():
    """At beta -> 0 the soft value is the maximum over continuations: the best response keeps what the prompt promised,
    and another one pays exactly where its prefix leaves the best one behind."""
    beta = 1e-3
    ref_B = torch.zeros(len(RESPONSES), dtype=torch.float64).log_softmax(0)
    reward_B = torch.arange(len(RESPONSES), dtype=torch.float64) / len(RESPONSES)  # the last response is the best
    best_B = (ref_B + reward_B / beta).log_softmax(0)
    mask_BT = torch.ones(len(RESPONSES), LENGTH, dtype=torch.bool)
    rewards_BT = implicit_rewards(token_logprobs(best_B), token_logprobs(ref_B), mask_BT, beta=beta)
    small = beta * LENGTH * torch.log(torch.tensor(float(VOCABULARY)))
    assert bool((rewards_BT[-1].abs() <= small).all())
    wrong_turn = RESPONSES.index((2, 0, 2, 2))  # leaves the best response at its second token
    assert int(rewards_BT[wrong_turn].argmin()) == 1
    assert bool((rewards_BT[wrong_turn, [0, 2, 3]].abs() <= small).all())
