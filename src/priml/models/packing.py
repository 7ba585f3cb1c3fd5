"""Rows laid end to end in one row without padding, each attending to itself alone.

transformers looks attention and mask functions up by name. Those registered here do what `sdpa` does. Given the lengths
of packed rows, they attend row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME, _PLAIN = "priml_packed", "sdpa"
_longest: ContextVar[int | None] = ContextVar("longest packed row", default=None)
_PROBE = (5, 4)  # lengths of two packed rows
_TOLERANCE = 1e-5  # of the largest hidden state. Found: 6e-7 and less where packing is right, 5e-5 and more elsewhere


def packed_hidden(module: PreTrainedModel, tokens_1S: Tensor, lengths: Sequence[int]) -> Tensor:
    """Hidden states [1, S, D] of rows of these lengths, laid end to end in `tokens_1S`. Positions begin again at each.

    The module has gone through `pack_attention`.
    """
    positions_1S = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0).to(tokens_1S.device)
    longest = _longest.set(max(lengths))
    try:
        # A layer that is computed again for its gradient gets its arguments again, but not the variable.
        output = module.base_model(
            input_ids=tokens_1S, position_ids=positions_1S, use_cache=False, packed_lengths=list(lengths)
        )
    finally:
        _longest.reset(longest)
    return output.last_hidden_state


def pack_attention(module: PreTrainedModel) -> None:
    """Give a module the attention for packed rows. On other inputs it computes what it did before."""
    with _quiet():
        module.set_attn_implementation(_NAME)


@torch.no_grad()
def packing_obstacle(module: PreTrainedModel) -> str | None:
    """Why rows of this module cannot be packed; None if they can. Compares packed with padded rows on a few tokens."""
    before = module.config._attn_implementation
    if before not in (_PLAIN, _NAME):
        return f"its attention is {before!r}, need {_PLAIN!r}"
    padded_bl = torch.arange(2 * max(_PROBE)).view(2, -1) % 3
    is_token_bl = torch.arange(max(_PROBE)) < torch.tensor(_PROBE).unsqueeze(1)
    device = next(module.parameters()).device
    expected_ND = module.base_model(input_ids=padded_bl.to(device), use_cache=False).last_hidden_state[is_token_bl]
    pack_attention(module)
    try:
        found_ND = packed_hidden(module, padded_bl[is_token_bl].unsqueeze(0).to(device), _PROBE)[0]
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        if float((found_ND - expected_ND).abs().max()) <= _TOLERANCE * float(expected_ND.abs().max()):
            return None
        reason = "a token's hidden state depends on the rows packed before it"
    with _quiet():
        module.set_attn_implementation(before)
    return reason


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_lengths: list[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Queries, keys and values are [b, heads, l, d], the result is [b, l, heads, d]. A mask is [b, 1, l, l].

    Neighbours of equal length are computed together: for short rows calls cost more than arithmetic.
    """
    if packed_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    runs = [(length, len(list(run))) for length, run in groupby(packed_lengths)]
    parts = (x.split([length * count for length, count in runs], dim=2) for x in (query, key, value))
    done, start = [], 0
    for (length, count), *run in zip(runs, *parts, strict=True):
        q, k, v = (x.squeeze(0).unflatten(1, (count, length)).transpose(0, 1) for x in run)
        mask = None if attention_mask is None else _blocks(attention_mask, start, length, count)
        done.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0].flatten(0, 1))
        start += length * count
    return torch.cat(done).unsqueeze(0), None


def _blocks(mask: Tensor, start: int, length: int, count: int) -> Tensor:
    """[count, 1, length, length] from the diagonal of [1, 1, S, S]."""
    rows = [slice(at, at + length) for at in range(start, start + length * count, length)]
    return torch.cat([mask[..., row, row] for row in rows])


def _mask(*args: Any, local_size: int | None = None, use_vmap: bool = False, **options: Any) -> Tensor | None:
    """None where each packed row is plainly causal. A window shorter than a row needs a mask [1, 1, S, S]; so does what
    an architecture adds by a function of its own (`use_vmap`)."""
    longest = _longest.get()
    if longest is not None and not use_vmap and (local_size is None or longest < local_size):
        return None
    return sdpa_mask(*args, local_size=local_size, use_vmap=use_vmap, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Architectures that cannot change their attention are warned of; the comparison finds them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
