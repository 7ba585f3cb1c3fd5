"""The weights of the policy on their way to a sampler, with the numbers that prove their arrival."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from priml.models.checkpoint import checkpoint_state
from priml.models.lora import Adapter, extract_adapter
from priml.types import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = "The probe: 17 + 25 = 42, so f(x) = 3x^2 - 4 gives f(2) = 8. Therefore the answer is \\boxed{8}."
"""Trainer and engine both score the beginning of this text after every weight update."""
PROBE_TOKENS = 32


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """New weights for an engine, and the log-probs that the trainer computes with them."""

    tensors: Mapping[str, Tensor]
    """Named as in a Hugging Face checkpoint; tied weights appear once. Empty when only the adapter is new."""
    probe_logprobs_t: Tensor
    """The trainer's log-probs of the probe's tokens after the first. float32, on the CPU."""
    adapter: Adapter | None = None
    """The adapter beside the weights; None when the weights are the whole policy."""


class WeightCopies:
    """Two copies of a module in this process. Training writes into one while a sampler reads the other.

    Frozen parameters are shared with the module, for nobody changes them.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        frozen = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
        self._copies = [copy.deepcopy(module, dict(frozen)) for _ in range(2)]

    @torch.no_grad()
    def snapshot(self, module: PreTrainedModel, in_use: PreTrainedModel | None) -> PreTrainedModel:
        """The weights of the module in the copy that is not `in_use`."""
        free = next(copied for copied in self._copies if copied is not in_use)
        for own, live in zip(free.parameters(), module.parameters(), strict=True):
            if live.requires_grad:
                own.copy_(live)
        return free


def probe_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens of the probe."""
    return tokenizer.encode(PROBE, add_special_tokens=False)[:PROBE_TOKENS]


def weight_update_from(
    module: PreTrainedModel,
    probe: Sequence[int],
    autocast_dtype: torch.dtype | None,
    *,
    separate_adapters: bool = False,
    all_weights: bool = True,
) -> WeightUpdate:
    """The weights of a module in this process, without a copy: valid until the module changes.

    Adapters are merged into the weights, or kept beside them (`separate_adapters`). In the second case the frozen
    weights can be left out (`all_weights=False`).
    """
    logprobs_t = _logprobs(module, probe, autocast_dtype)
    if not separate_adapters:
        return WeightUpdate(checkpoint_state(module), logprobs_t)
    return WeightUpdate(checkpoint_state(module, add=False) if all_weights else {}, logprobs_t, extract_adapter(module))


def verification_updates(
    module: PreTrainedModel,
    probe: Sequence[int],
    autocast_dtype: torch.dtype | None,
    *,
    separate_adapters: bool = False,
) -> Iterator[WeightUpdate]:
    """An update with other weights, then one with the real weights.

    One training step moves log-probs by less than rounding does, so an engine that ignores updates would be noticed
    late. With other weights it is noticed at once.
    """
    with other_weights(module):
        yield weight_update_from(module, probe, autocast_dtype, separate_adapters=separate_adapters)
    yield weight_update_from(module, probe, autocast_dtype, separate_adapters=separate_adapters)


@contextlib.contextmanager
@torch.no_grad()
def other_weights(module: nn.Module) -> Iterator[None]:
    """Halve all parameters inside the block. A power of two: the weights are restored exactly."""
    for parameter in module.parameters():
        parameter.mul_(0.5)
    try:
        yield
    finally:
        for parameter in module.parameters():
            parameter.mul_(2.0)


@torch.no_grad()
def _logprobs(module: nn.Module, token_ids: Sequence[int], autocast_dtype: torch.dtype | None) -> Tensor:
    device = next(module.parameters()).device
    ids_1l = torch.tensor([token_ids], device=device)
    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
        logits_tV = module(input_ids=ids_1l, use_cache=False).logits[0, :-1]
    return logits_tV.float().log_softmax(-1).gather(1, ids_1l[0, 1:, None]).squeeze(1).cpu()
