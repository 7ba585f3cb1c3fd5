"""Users' estimators and surrogates: the right results pass, all others are refused by the function's name."""

import pytest
import torch

from priml.errors import UsageError
from priml.maths import Bounds, estimate_advantages
from priml.maths.custom import check_estimator, check_surrogate, check_tokens
from priml.maths.policy_loss import SURROGATES, clipped_surrogate

MASK_BT = torch.tensor([[True, True, False], [True, True, True]])
PADDING_NAN_BT = torch.where(MASK_BT, 1.0, torch.nan)


def test_padding_may_hold_anything_and_becomes_zero():
    assert check_tokens(PADDING_NAN_BT, MASK_BT, "f").tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "my.py:f returned NoneType; it must return a floating-point tensor of shape (2, 3)"),
        (torch.ones(3, 2), "my.py:f returned a tensor of shape (3, 2) and torch.float32; it must return"),
        (torch.ones(2, 3, dtype=torch.int64), "my.py:f returned a tensor of shape (2, 3) and torch.int64"),
        (torch.full((2, 3), torch.inf), "my.py:f returned inf for token 0 of response 0; it must return a finite"),
    ],
)
def test_other_results_are_refused_by_name(found: object, message: str):
    with pytest.raises(UsageError) as caught:
        check_tokens(found, MASK_BT, "my.py:f")
    assert message in str(caught.value)


def test_an_estimator_of_ones_own_takes_the_place_of_ours():
    mine = check_estimator(lambda inputs, preset: inputs.outcomes_B[:, None] * inputs.mask_BT, name="my.py:mine")
    arguments = (torch.tensor([0.0, 1.0]), torch.zeros(2, 3), MASK_BT, torch.zeros(2, dtype=torch.long))
    found_BT = estimate_advantages(*arguments, estimator=mine, preset="paper")
    assert found_BT.tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_a_surrogate_of_ones_own_gives_the_loss_of_ours():
    logprobs_BT = torch.rand(2, 3, requires_grad=True)
    arguments = (logprobs_BT, torch.rand(2, 3), torch.rand(2, 3), MASK_BT)
    options = {"clip_low": 0.2, "clip_high": 0.2, "aggregate": "token_mean"}
    mine = check_surrogate(SURROGATES["ppo"], name="my.py:mine")
    found, _ = clipped_surrogate(*arguments, **options, surrogate=mine)
    expected, _ = clipped_surrogate(*arguments, **options, surrogate="ppo")
    assert found.item() == expected.item()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.ones(3, 3), "it must return two tensors"),
        ((torch.ones(2, 3), torch.ones(2, 3)), "as its second result; it must be bounded_BT"),
        ((torch.ones(2, 3), MASK_BT), "returned a loss without gradient; compute it from logprobs_BT"),
    ],
)
def test_a_surrogate_that_breaks_its_contract_is_refused(result: object, message: str):
    logprobs_BT = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(UsageError, match=message):
        check_surrogate(lambda *_: result, name="my.py:f")(
            logprobs_BT, torch.zeros(2, 3), torch.ones(2, 3), MASK_BT, Bounds(0.2, 0.2)
        )


def test_what_an_estimator_changes_in_place_stays_unchanged_for_others():
    def centre(inputs, preset):
        inputs.outcomes_B.sub_(inputs.outcomes_B.mean())
        return inputs.outcomes_B[:, None].expand(inputs.mask_BT.shape)

    outcomes_B = torch.tensor([0.0, 1.0])
    mine = check_estimator(centre, name="my.py:centre")
    arguments = (outcomes_B, torch.zeros(2, 3), MASK_BT, torch.zeros(2, dtype=torch.long))
    assert estimate_advantages(*arguments, estimator=mine, preset="paper")[:, 0].tolist() == [-0.5, 0.5]
    assert outcomes_B.tolist() == [0.0, 1.0]
