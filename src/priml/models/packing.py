"""Rows laid end to end in one row without padding, each attending to itself alone. Rows that begin alike may share
their beginning: it is computed once.

transformers looks attention and mask functions up by name. Those registered here do what `sdpa` does. Given packed
rows, they attend row by row. Attention alone sees a shared beginning in each of its rows; all else sees it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, groupby
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
_PROBE_SHARES = 2  # tokens that they begin with alike, if they do
_TOLERANCE = 1e-5  # of the largest hidden state. Found: 6e-7 and less where packing is right, 5e-5 and more elsewhere


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows [b, l] with padding on the right, laid end to end: S places, of which U are computed."""

    lengths: tuple[int, ...]
    """Of the rows; their sum is S."""
    tokens_U: Tensor
    """Place in the flattened [b, l] of each token that is computed."""
    positions_U: Tensor
    """Its position in its row."""
    computed_S: Tensor | None = None
    """Which computed token stands at each place; None: each its own."""
    first_U: Tensor | None = None
    """Where each computed token stands first."""

    def to(self, device: torch.device) -> PackedRows:
        moved = (None if x is None else x.to(device) for x in (self.computed_S, self.first_U))
        return PackedRows(self.lengths, self.tokens_U.to(device), self.positions_U.to(device), *moved)

    def hidden(self, module: PreTrainedModel, tokens_bl: Tensor, wanted_bl: Tensor) -> Tensor:
        """Hidden states [N, D] of the wanted tokens, row by row. The module has gone through `pack_attention`."""
        longest = _longest.set(max(self.lengths))
        try:
            # A layer that is computed again for its gradient gets its arguments again, but not the variable.
            output = module.base_model(
                input_ids=tokens_bl.flatten()[self.tokens_U].unsqueeze(0),
                position_ids=self.positions_U.unsqueeze(0),
                use_cache=False,
                packed_rows=self,
            )
        finally:
            _longest.reset(longest)
        return output.last_hidden_state[0].index_select(0, self._computed(wanted_bl))

    def _computed(self, wanted_bl: Tensor) -> Tensor:
        """Which computed tokens these are."""
        lengths_b = torch.tensor(self.lengths, device=wanted_bl.device).unsqueeze(1)
        wanted_S = wanted_bl[torch.arange(wanted_bl.shape[1], device=wanted_bl.device) < lengths_b].nonzero().squeeze(1)
        return wanted_S if self.computed_S is None else self.computed_S[wanted_S]


def lay_out(width: int, lengths: Sequence[int], shared: Sequence[tuple[int, int]] = ()) -> PackedRows:
    """Rows of these lengths in a grid of this width. `shared`: for each row an earlier one, and how many tokens it
    begins with as that one does; 0 with any row, if there is none."""
    starts = list(accumulate(lengths, initial=0))
    computed: list[Tensor] = []
    first: list[Tensor] = []
    count = 0
    for row, (length, (origin, same)) in enumerate(zip(lengths, shared or [(0, 0)] * len(lengths), strict=True)):
        begin = computed[origin][:same] if same else torch.zeros(0, dtype=torch.long)
        computed.append(torch.cat([begin, torch.arange(count, count + length - same)]))
        first.append(torch.arange(starts[row] + same, starts[row] + length))
        count += length - same
    first_U = torch.cat(first)
    places_S = torch.cat([row * width + torch.arange(length) for row, length in enumerate(lengths)])
    positions_S = torch.cat([torch.arange(length) for length in lengths])
    shares = count < starts[-1]
    return PackedRows(
        tuple(lengths),
        places_S[first_U],
        positions_S[first_U],
        torch.cat(computed) if shares else None,
        first_U if shares else None,
    )


def pack_attention(module: PreTrainedModel) -> None:
    """Give a module the attention for packed rows. On other inputs it computes what it did before."""
    with _quiet():
        module.set_attn_implementation(_NAME)


def shortest_window(module: PreTrainedModel) -> int | None:
    """Tokens of the shortest window of any attention of a module; None: all see everything before them."""
    config = module.config.get_text_config()
    found = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((window for window in found if window is not None), default=None)


@torch.no_grad()
def packing_obstacle(module: PreTrainedModel, *, shares: bool = False) -> str | None:
    """Why rows of this module cannot be packed; None if they can. Compares packed with padded rows on a few tokens."""
    before = module.config._attn_implementation
    if before not in (_PLAIN, _NAME):
        return f"its attention is {before!r}, need {_PLAIN!r}"
    device = next(module.parameters()).device
    padded_bl = torch.arange(2 * max(_PROBE), device=device).view(2, -1) % 3
    padded_bl[1, :_PROBE_SHARES] = padded_bl[0, :_PROBE_SHARES]
    is_token_bl = torch.arange(max(_PROBE), device=device) < torch.tensor(_PROBE, device=device).unsqueeze(1)
    expected_ND = module.base_model(input_ids=padded_bl, use_cache=False).last_hidden_state[is_token_bl]
    pack_attention(module)
    shared = [(0, 0), (0, _PROBE_SHARES)] if shares else []
    try:
        found_ND = lay_out(max(_PROBE), _PROBE, shared).to(device).hidden(module, padded_bl, is_token_bl)
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
    packed_rows: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Queries, keys and values are [b, heads, l, d], the result is [b, l, heads, d]. A mask is [b, 1, l, l].

    Neighbours of equal length are computed together: for short rows calls cost more than arithmetic.
    """
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    computed_S, first_U = packed_rows.computed_S, packed_rows.first_U
    if computed_S is None or first_U is None:
        return _row_by_row(module, query, key, value, attention_mask, packed_rows.lengths, **options), None
    if attention_mask is not None:
        raise ValueError("a mask over the computed tokens does not fit rows that share their beginning")
    query, key, value = (x.transpose(1, 2).index_select(1, computed_S).transpose(1, 2) for x in (query, key, value))
    return _row_by_row(module, query, key, value, None, packed_rows.lengths, **options).index_select(1, first_U), None


def _row_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: Sequence[int],
    **options: Any,
) -> Tensor:
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    parts = (x.split([length * count for length, count in runs], dim=2) for x in (query, key, value))
    done, start = [], 0
    for (length, count), *run in zip(runs, *parts, strict=True):
        q, k, v = (x.squeeze(0).unflatten(1, (count, length)).transpose(0, 1) for x in run)
        mask = None if attention_mask is None else _blocks(attention_mask, start, length, count)
        done.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0].flatten(0, 1))
        start += length * count
    return torch.cat(done).unsqueeze(0)


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
