"""Users' own estimators and surrogates in the place of ours, with their results checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from priml.errors import UsageError
from priml.maths.advantages import AdvantageInputs, Estimator
from priml.maths.policy_loss import Bounds, Surrogate
from priml.maths.presets import Preset


def check_estimator(function: Callable[..., Any], *, name: str) -> Estimator:
    """An `Estimator` around a user's function; `name` stands for it in messages.

    The function gets copies: what it changes in place stays unchanged for the others. It raises UsageError when the
    function returns something else than one finite number for each token.
    """

    def estimate(inputs: AdvantageInputs, preset: Preset) -> Tensor:
        tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        copies = {key: value.clone() for key, value in tensors.items() if value is not None}
        return check_tokens(function(replace(inputs, **copies), preset), inputs.mask_BT, name)

    return estimate


def check_surrogate(function: Callable[..., Any], *, name: str) -> Surrogate:
    """A `Surrogate` around a user's function; `name` stands for it in messages.

    It raises UsageError when the function returns something else than a finite loss for each token, which depends on
    the log-probs, and a mask.
    """

    def surrogate(
        logprobs_BT: Tensor, log_ratio_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, bounds: Bounds
    ) -> tuple[Tensor, Tensor]:
        result: Any = function(logprobs_BT, log_ratio_BT, advantages_BT, mask_BT, bounds)
        try:
            loss_BT, bounded_BT = result
        except (TypeError, ValueError):
            raise UsageError(
                f"{name} returned {_described(result)}; it must return two tensors: loss_BT, bounded_BT"
            ) from None
        loss_BT = check_tokens(loss_BT, mask_BT, name)
        if not isinstance(bounded_BT, Tensor) or bounded_BT.dtype != torch.bool or bounded_BT.shape != mask_BT.shape:
            raise UsageError(
                f"{name} returned {_described(bounded_BT)} as its second result; it must be bounded_BT, "
                f"a bool tensor of shape {tuple(mask_BT.shape)}"
            )
        if logprobs_BT.requires_grad and not loss_BT.requires_grad:
            raise UsageError(f"{name} returned a loss without gradient; compute it from logprobs_BT or log_ratio_BT")
        return loss_BT, bounded_BT

    return surrogate


def check_tokens(found: object, mask_BT: Tensor, name: str) -> Tensor:
    """`found`, 0 on padding.

    Raises:
        UsageError: it is not a floating-point tensor in the shape of the mask, or not finite on a valid token.
    """
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != mask_BT.shape:
        raise UsageError(
            f"{name} returned {_described(found)}; it must return a floating-point tensor of shape "
            f"{tuple(mask_BT.shape)}, one number for each token"
        )
    finite_BT = torch.isfinite(found) | ~mask_BT
    if not bool(finite_BT.all()):
        row, token = (int(index) for index in (~finite_BT).nonzero()[0])
        raise UsageError(
            f"{name} returned {float(found[row, token])} for token {token} of response {row}; "
            "it must return a finite number for each valid token"
        )
    return found.masked_fill(~mask_BT, 0.0)


def _described(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)} and {found.dtype}"
    return type(found).__name__
