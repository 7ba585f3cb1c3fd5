"""Weights on their way to an engine that keeps a copy of its own, with what proves that they arrived."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from priml.models.checkpoint import checkpoint_state
from priml.models.lora import Adapter, extract_adapter

PROBE = "The probe: 17 + 25 = 42, so f(x) = 3x^2 - 4 gives f(2) = 8. Therefore the answer is \\boxed{8}."
"""What trainer and engine both read after every push, or the beginning of it."""
PROBE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """The weights of the policy, and what the trainer says with them."""

    tensors: Mapping[str, Tensor]
    """Under the names that a Hugging Face checkpoint has, tied ones once. None at all: those that came last still hold,
    and adapters alone are new."""
    probe_logprobs_t: Tensor
    """The trainer's log-probs of the probe's tokens after the first. float32, on the CPU."""
    adapter: Adapter | None = None
    """What stands beside the weights; None when they are the whole policy."""


def probe_ids(tokenizer: Any) -> list[int]:
    """The probe as the model reads it."""
    return tokenizer.encode(PROBE, add_special_tokens=False)[:PROBE_TOKENS]


def weight_update_from(
    module: Any,
    probe: Sequence[int],
    autocast_dtype: torch.dtype | None,
    *,
    apart: bool = False,
    all_weights: bool = True,
) -> WeightUpdate:
    """The weights of a module in this process as they lie in memory: good for as long as the module is not changed.

    Adapters are added to them, or come `apart`; then the frozen weights need not come every time (`all_weights`).
    """
    logprobs_t = _logprobs(module, probe, autocast_dtype)
    if not apart:
        return WeightUpdate(checkpoint_state(module), logprobs_t)
    return WeightUpdate(checkpoint_state(module, add=False) if all_weights else {}, logprobs_t, extract_adapter(module))


def rehearsal(
    module: Any, probe: Sequence[int], autocast_dtype: torch.dtype | None, *, apart: bool = False
) -> Iterator[WeightUpdate]:
    """Other weights, then the real ones.

    One step of training moves log-probs by less than rounding does, so that weights which never arrive would be noticed
    late. Halved weights make another model, and halving is undone without a trace.
    """
    with halved(module):
        yield weight_update_from(module, probe, autocast_dtype, apart=apart)
    yield weight_update_from(module, probe, autocast_dtype, apart=apart)


@contextlib.contextmanager
@torch.no_grad()
def halved(module: nn.Module) -> Iterator[None]:
    """All parameters times one half inside the block; a power of two, so that they come out as they went in."""
    for parameter in module.parameters():
        parameter.mul_(0.5)
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.mul_(2.0)


@torch.no_grad()
def _logprobs(module: Any, token_ids: Sequence[int], autocast_dtype: torch.dtype | None) -> Tensor:
    device = next(module.parameters()).device
    ids_1l = torch.tensor([token_ids], device=device)
    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        logits_tV = module(input_ids=ids_1l, use_cache=False).logits[0, :-1]
    return logits_tV.float().log_softmax(-1).gather(1, ids_1l[0, 1:, None]).squeeze(1).cpu()
