"""Padding may hold NaN in any float input of any function, and changes neither a value nor a gradient."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import priml.maths
from priml.maths import advantages, implicit, masking, policy_loss, prm_loss
from priml.maths.advantages import ESTIMATORS, PRESETS

SURROGATE: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 2.0}

# What each function does with float tensors x, y, z of shape [B, T] whose padding is poisoned, and a batch b.
CALLS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Any]] = {
    "masked_sum": lambda b, x, y, z: (masking.masked_sum(x, b.mask_BT), masking.masked_sum(x, b.mask_BT, dim=1)),
    "masked_mean": lambda b, x, y, z: (masking.masked_mean(x, b.mask_BT), masking.masked_mean(x, b.mask_BT, dim=1)),
    "whiten": lambda b, x, y, z: masking.whiten(x, b.mask_BT),
    "discounted_suffix_sum": lambda b, x, y, z: masking.discounted_suffix_sum(x, b.mask_BT, gamma=0.9),
    "implicit_rewards": lambda b, x, y, z: implicit.implicit_rewards(x, y, b.mask_BT, beta=0.05),
    "prefix_q": lambda b, x, y, z: implicit.prefix_q(x, b.mask_BT),
    "step_rewards": lambda b, x, y, z: implicit.step_rewards(x, b.mask_BT, [[0]] * len(x)),
    "whole_response_reward": lambda b, x, y, z: implicit.whole_response_reward(x, b.mask_BT),
    "sequence_scores": lambda b, x, y, z: prm_loss.sequence_scores(x, b.mask_BT),
    "outcome_cross_entropy": lambda b, x, y, z: prm_loss.outcome_cross_entropy(x, b.mask_BT, b.outcomes_B),
    "pairwise_dpo": lambda b, x, y, z: prm_loss.pairwise_dpo(x, b.mask_BT, b.outcomes_B, b.groups_B),
    "detached_dpo": lambda b, x, y, z: prm_loss.detached_dpo(x, b.mask_BT, b.outcomes_B, b.outcomes_B),
    "pair_accuracy": lambda b, x, y, z: prm_loss.pair_accuracy(x, b.mask_BT, b.outcomes_B, b.groups_B),
    "abs_accuracy": lambda b, x, y, z: prm_loss.abs_accuracy(x, b.mask_BT, b.outcomes_B),
    "process_returns": lambda b, x, y, z: tuple(
        advantages.process_returns(x, b.mask_BT, b.groups_B, form=form, gamma=0.9) for form in ("paper", "authors")
    ),
    "likelihood": lambda b, x, y, z: prm_loss.likelihood(x, b.mask_BT, b.outcomes_B, beta=0.1),
    "peak_return": lambda b, x, y, z: advantages.peak_return(x, b.mask_BT),
    "batch_norm": lambda b, x, y, z: advantages.batch_norm(x, b.mask_BT),
    "gae": lambda b, x, y, z: advantages.gae(x, y, b.mask_BT, gamma=0.95, lam=0.9),
    "estimate_advantages": lambda b, x, y, z: tuple(
        advantages.estimate_advantages(
            b.outcomes_B, x, b.mask_BT, b.groups_B, estimator=estimator, preset=preset, beta=0.05, values_BT=y
        )
        for estimator in ESTIMATORS
        for preset in PRESETS
        if (estimator, preset) != ("ppo", "priml")  # one discount, and two
    ),
    "clipped_surrogate": lambda b, x, y, z: tuple(
        policy_loss.clipped_surrogate(
            x, y, z, b.mask_BT, **SURROGATE, aggregate=aggregate, surrogate=surrogate, weights_BT=y
        )[0]
        for aggregate in ("token_mean", "sequence_mean")
        for surrogate in policy_loss.SURROGATES
    ),
    "importance_weights": lambda b, x, y, z: tuple(
        policy_loss.importance_weights(x, y, b.mask_BT, level=level, cap=2.0) for level in ("token", "sequence")
    ),
    "aggregate_tokens": lambda b, x, y, z: tuple(
        policy_loss.aggregate_tokens(x, b.mask_BT, aggregate, denominator=7.0)
        for aggregate in ("token_mean", "sequence_mean", "constant_length")
    ),
    "clipped_value_loss": lambda b, x, y, z: policy_loss.clipped_value_loss(x, y, z, b.mask_BT, clip=0.3),
    "kl_penalty": lambda b, x, y, z: tuple(
        policy_loss.kl_penalty(x, y, b.mask_BT, estimator=estimator) for estimator in policy_loss.KL_ESTIMATORS
    ),
    "kl_k1": lambda b, x, y, z: policy_loss.kl_k1(x, y, b.mask_BT),
    "kl_k2": lambda b, x, y, z: policy_loss.kl_k2(x, y, b.mask_BT),
    "kl_k3": lambda b, x, y, z: policy_loss.kl_k3(x, y, b.mask_BT),
}


def _modules() -> list[Any]:
    return [importlib.import_module(f"priml.maths.{m.name}") for m in pkgutil.iter_modules(priml.maths.__path__)]


def test_every_public_function_with_padding_is_tried() -> None:
    takes_floats_and_mask = {
        name
        for module in _modules()
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and {"mask_BT"} < {p for p in inspect.signature(function).parameters if p.endswith("_BT")}
    }
    assert takes_floats_and_mask == set(CALLS)


def _run(call: Callable[..., Any], b: Any, padding: float) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(b.mask_BT.shape, generator=generator, dtype=torch.float64)
        .masked_fill(~b.mask_BT, padding)
        .requires_grad_()
        for _ in range(3)
    ]
    result = call(b, *inputs)
    outputs = result if isinstance(result, tuple) else (result,)
    differentiable = [out for out in outputs if out.requires_grad]
    if differentiable:
        # Weights that differ per element: a plain sum would hide gradients that cancel.
        total = sum((out * torch.arange(1.0, out.numel() + 1).reshape(out.shape)).sum() for out in differentiable)
        assert isinstance(total, Tensor)
        total.backward()
    return tuple(out.detach() for out in outputs), [x.grad for x in inputs]


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", CALLS)
def test_padding_changes_neither_values_nor_gradients(
    random_batch: Callable[..., Any], name: str, padding: float
) -> None:
    b = random_batch(6, num_tokens=6)
    assert not b.mask_BT.all()
    clean_outputs, clean_gradients = _run(CALLS[name], b, padding=0.0)
    outputs, gradients = _run(CALLS[name], b, padding=padding)
    for clean, poisoned in zip(clean_outputs, outputs, strict=True):
        assert torch.equal(clean, poisoned)
        assert poisoned.isfinite().all()
        if poisoned.shape == b.mask_BT.shape:
            assert not poisoned[~b.mask_BT].any()
    for clean, poisoned in zip(clean_gradients, gradients, strict=True):
        assert (clean is None) == (poisoned is None)
        if clean is not None and poisoned is not None:
            assert torch.equal(clean, poisoned)
            assert poisoned.isfinite().all()
            assert not poisoned[~b.mask_BT].any()
