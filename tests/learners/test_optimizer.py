"""A step that refuses to move on numbers that are not finite, and otherwise is AdamW with clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fakes import save
from priml.batch import Batch, TokenScores
from priml.errors import NonFiniteError
from priml.learners.optimizer import Optimizer, attach_batch_on_error


def small(value: float = 1.0) -> nn.Linear:
    module = nn.Linear(3, 2, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def build_optimizer(module: nn.Module, **changes: Any) -> Optimizer:
    given: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.01, "max_grad_norm": 1.0}
    return Optimizer(module, role="policy", **(given | changes))


def push(module: nn.Linear, gradient: float) -> None:
    module.weight.grad = torch.full_like(module.weight, gradient)


def test_it_takes_the_steps_of_adamw_with_clipping() -> None:
    ours, plain = small(), small()
    make_optimizer = build_optimizer(ours)
    adamw = torch.optim.AdamW(plain.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    for gradient in (3.0, -0.001, 0.5):
        push(ours, gradient)
        push(plain, gradient)
        norm = make_optimizer.step(0.0)
        assert norm == pytest.approx(abs(gradient) * 6**0.5)
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adamw.step()
        torch.testing.assert_close(ours.weight, plain.weight)
        assert ours.weight.grad is None


def test_the_learning_rate_is_scaled_per_step() -> None:
    ours, half = small(), small()
    make_optimizer, other = build_optimizer(ours), build_optimizer(half, lr=0.05)
    for module in (ours, half):
        push(module, 1.0)
    make_optimizer.step(0.0, lr_scale=0.5)
    other.step(0.0)
    assert torch.equal(ours.weight, half.weight)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(small(), small())
    module[0].requires_grad_(False)
    make_optimizer = build_optimizer(module, weight_decay=0.5)
    push(module[1], 1.0)  # pyright: ignore
    make_optimizer.step(0.0)
    assert torch.equal(module[0].weight, torch.ones(2, 3))
    assert not torch.equal(module[1].weight, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [(float("nan"), 1.0), (float("inf"), 1.0), (0.5, float("nan")), (0.5, float("inf")), (0.5, -float("inf"))],
)
def test_nothing_moves_on_numbers_that_are_not_finite(loss: float, gradient: float, tmp_path: Path) -> None:
    module, twin = small(), small()
    make_optimizer, untouched = build_optimizer(module), build_optimizer(twin)
    for m, s in ((module, make_optimizer), (twin, untouched)):
        push(m, 1.0)
        s.step(0.0)
    before = module.weight.detach().clone()

    push(module, 1.0)
    module.weight.grad[0, 0] = gradient  # pyright: ignore
    with pytest.raises(NonFiniteError, match=r"policy loss is \S+ and its gradient norm \S+; need finite"):
        make_optimizer.step(loss)
    assert torch.equal(module.weight, before)
    assert module.weight.grad is None

    for m, s in ((module, make_optimizer), (twin, untouched)):
        push(m, 0.3)
        s.step(0.0)
    assert torch.equal(module.weight, twin.weight), "the optimizer's moments did not move either"


def test_a_saved_and_loaded_optimizer_goes_on_exactly(tmp_path: Path) -> None:
    straight, resumed = small(), small()
    one, other = build_optimizer(straight), build_optimizer(resumed)
    push(straight, 1.0)
    one.step(0.0, lr_scale=0.1)
    save(one, tmp_path)
    other.load(tmp_path)
    with torch.no_grad():
        resumed.weight.copy_(straight.weight)
    for module, make_optimizer in ((straight, one), (resumed, other)):
        push(module, -0.7)
        make_optimizer.step(0.0)
    assert torch.equal(straight.weight, resumed.weight)


def test_the_batch_is_attached_to_the_error(batch: Batch) -> None:
    scores = TokenScores(logprobs_BT=torch.zeros(batch.mask_BT.shape), entropies_BT=torch.zeros(batch.mask_BT.shape))
    with (
        pytest.raises(NonFiniteError) as caught,
        attach_batch_on_error(batch.with_old(scores), advantages=torch.ones(2)),
    ):
        raise NonFiniteError("policy loss is nan")
    assert caught.value.tensors is not None
    assert set(caught.value.tensors) == {
        "tokens",
        "loss_mask",
        "prompt_lengths",
        "response_lengths",
        "outcomes",
        "groups",
        "old_logprobs",
        "advantages",
    }
