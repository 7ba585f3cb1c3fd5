"""Decoding: the next-token logits of a batch of rows, through whatever cache the model's architecture has."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from priml.errors import ModelError

logger = logging.getLogger(__name__)


class Decoder(ABC):
    """A model and what it remembers of the rows that it is given token by token."""

    def __init__(self, module: PreTrainedModel, device: torch.device) -> None:
        self._module = module
        self._device = device
        # ALiBi models count positions themselves; a few compute all logits, of which we keep the last.
        self._accepted = inspect.signature(module.forward).parameters.keys()

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Logits [rows, V] after each prompt, rows = its number of samples."""

    @abstractmethod
    def step(self, tokens_b: Tensor) -> Tensor:
        """Logits [rows, V] after one more token per row."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch. A row that is named twice is doubled."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How rows of an architecture are decoded."""

    cached: bool = True
    """Keys, values and states of earlier tokens are kept. Else each token computes its whole row again."""
    equal_lengths: bool = False
    """The prompts of a batch must have the same length, because padding on the left would disturb a state."""
    switch: int | None = None
    """Where the frequencies of the rotary positions change (`models/rope.py`), if rows grow beyond."""

    def across(self, switch: int) -> Decoding:
        """For rows that grow beyond this length. The rows of a batch then do so together."""
        return replace(self, equal_lengths=True, switch=switch)

    def decoder(self, module: PreTrainedModel, device: torch.device, *, max_new_tokens: int) -> Decoder:
        if not self.cached:
            return UncachedDecoder(module, device)
        return CachedDecoder(module, device, max_new_tokens=max_new_tokens, switch=self.switch)


class CachedDecoder(Decoder):
    """With the model's own kind of cache."""

    def __init__(
        self, module: PreTrainedModel, device: torch.device, *, max_new_tokens: int, switch: int | None = None
    ) -> None:
        super().__init__(module, device)
        self._max_new_tokens = max_new_tokens
        self._switch = switch
        self._cache = self._empty_cache()
        # Models that have no keys call it otherwise.
        self._cache_name = "cache_params" if "cache_params" in self._accepted else "past_key_values"
        self._length = 0
        self._mask_bL: Tensor | None = None
        """1 except on left padding, with room for every token to come; None when there is no padding."""
        self._positions_b = torch.empty(0)
        self._tokens_bl = torch.empty(0)
        """All tokens of each row, kept for a switch."""

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """As in `Decoder`, with left padding when lengths differ."""
        self._length = max(len(p) for p in prompts)
        tokens_pl = torch.zeros(len(prompts), self._length, dtype=torch.long)
        mask_pL = torch.ones(len(prompts), self._length + self._max_new_tokens, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            padding = self._length - len(prompt)
            tokens_pl[i, padding:] = torch.tensor(prompt)
            mask_pL[i, :padding] = 0
        positions_pl = (mask_pL[:, : self._length].cumsum(-1) - 1).clamp(min=0)
        if any(len(p) < self._length for p in prompts):
            self._mask_bL = mask_pL.to(self._device)
        self._tokens_bl = tokens_pl.to(self._device)
        logits_pV = self._forward(self._tokens_bl, positions_pl.to(self._device))
        rows = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(repeats)).to(self._device)
        self._positions_b = positions_pl[:, -1].to(self._device)
        self.keep(rows)
        return logits_pV[rows]

    def step(self, tokens_b: Tensor) -> Tensor:
        self._length += 1
        self._positions_b = self._positions_b + 1
        tokens_b1, positions_b1 = tokens_b.unsqueeze(1), self._positions_b.unsqueeze(1)
        if self._switch is None:
            return self._forward(tokens_b1, positions_b1)
        self._tokens_bl = torch.cat([self._tokens_bl, tokens_b1], dim=1)
        if self._length != self._switch + 1:
            return self._forward(tokens_b1, positions_b1)
        self._cache = self._empty_cache()  # its keys were turned by the other frequencies
        return self._forward(
            self._tokens_bl, torch.arange(self._length, device=self._device).expand_as(self._tokens_bl)
        )

    def keep(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]
        self._positions_b = self._positions_b[rows]
        self._mask_bL = None if self._mask_bL is None else self._mask_bL[rows]
        self._tokens_bl = self._tokens_bl[rows]

    def _empty_cache(self) -> DynamicCache:
        cache = DynamicCache(config=self._module.config)
        # Plain layers copy everything at every token.
        cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def _forward(self, tokens_bl: Tensor, positions_bl: Tensor) -> Tensor:
        optional = {"position_ids": positions_bl, "logits_to_keep": 1}
        output = self._module(
            input_ids=tokens_bl,
            attention_mask=None if self._mask_bL is None else self._mask_bL[:, : self._length],
            use_cache=True,
            **{self._cache_name: self._cache},
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        return output.logits[:, -1]


class UncachedDecoder(Decoder):
    """Without a cache: each token computes its whole row again. The prompts of a batch have one length."""

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        self._tokens_bl = torch.tensor(prompts, device=self._device)
        rows = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(repeats)).to(self._device)
        logits_pV = self._forward()
        self.keep(rows)
        return logits_pV[rows]

    def step(self, tokens_b: Tensor) -> Tensor:
        self._tokens_bl = torch.cat([self._tokens_bl, tokens_b.unsqueeze(1)], dim=1)
        return self._forward()

    def keep(self, rows: Tensor) -> None:
        self._tokens_bl = self._tokens_bl[rows]

    def _forward(self) -> Tensor:
        optional = {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}
        return self._module(input_ids=self._tokens_bl, use_cache=False, **optional).logits[:, -1]


_WAYS = (Decoding(), Decoding(equal_lengths=True), Decoding(cached=False, equal_lengths=True))
"""The fastest first."""
_PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6, 5), (3, 5, 8), (9, 7, 9))
_MORE = ((3, 2, 3), (8, 4, 6), (2, 6, 4))
"""Tokens after each prompt. The second row leaves the batch before the last of them."""


@torch.no_grad()
def choose_decoding(module: PreTrainedModel, device: torch.device) -> Decoding:
    """The fastest way that reproduces the model's own forward pass on a few tokens.

    Some architectures have a state that left padding disturbs, or a cache of their own kind, or none.

    Raises:
        ModelError: no way does.
    """
    tokens = torch.tensor([_small(_PROMPTS[0], module)], device=device)
    if not bool(module(input_ids=tokens, use_cache=False).logits.isfinite().any()):
        raise ModelError(
            f"{type(module).__name__}: its logits are not finite numbers; its weights are broken, or it computes in a "
            "type that is too small for them: take an earlier checkpoint, or backend.precision: fp32"
        )
    reasons: list[str] = []
    for way in _WAYS:
        reason = _obstacle(way, module, device)
        if reason is None:
            if not way.cached:
                logger.info(
                    f"sampler: {type(module).__name__} is decoded without a cache ({reasons[-1]}): each token computes "
                    "its whole row again, so long responses are slow"
                )
            return way
        reasons.append(reason)
    raise ModelError(
        f"{type(module).__name__}: decoding does not reproduce its own forward pass, with or without a cache "
        f"({reasons[-1]}), so it cannot be sampled from here; choose another architecture"
    )


def _obstacle(way: Decoding, module: PreTrainedModel, device: torch.device) -> str | None:
    """Why the model cannot be decoded so; None if it can."""
    rows = [(_small(p, module), _small(m, module)) for p, m in zip(_PROMPTS, _MORE, strict=True)]
    batches = [rows]
    if way.equal_lengths:
        batches = [[row for row in rows if len(row[0]) == length] for length in sorted({len(p) for p in _PROMPTS})]
    try:
        for batch in batches:
            if _differs(way.decoder(module, device, max_new_tokens=len(_MORE[0])), module, batch):
                return "other log-probs than those of a plain forward pass"
    except Exception as error:  # of a library, for any reason
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(". ")
    return None


def _small(tokens: Sequence[int], module: PreTrainedModel) -> list[int]:
    """The tokens, each within the vocabulary."""
    vocabulary = module.config.get_text_config().vocab_size
    return [token % vocabulary for token in tokens]


def _differs(decoder: Decoder, module: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> bool:
    """Whether some token has other log-probs than in a plain forward pass of its row alone. `rows`: each a prompt and
    what follows."""
    alive = list(range(len(rows)))
    found_bV = decoder.prefill([prompt for prompt, _ in rows], [1] * len(rows))
    device = found_bV.device
    plain = [module(input_ids=torch.tensor([p + m], device=device), use_cache=False).logits[0] for p, m in rows]
    steps = len(rows[0][1])
    for t in range(steps + 1):
        for row, found_V in zip(alive, found_bV, strict=True):
            expected_V = plain[row][len(rows[row][0]) - 1 + t].double().log_softmax(-1)
            gap = expected_V.max() - expected_V.min()
            if not bool((found_V.double().log_softmax(-1) - expected_V).abs().max() <= 1e-3 * gap + 1e-5):
                return True  # NaN is not below anything
        if t == steps:
            break
        if t == 1 and len(alive) > 1:
            going = [i for i in range(len(alive)) if i != 1]
            decoder.keep(torch.tensor(going, device=device))
            alive = [alive[i] for i in going]
        found_bV = decoder.step(torch.tensor([rows[row][1][t] for row in alive], device=device))
    return False


class _GrowingLayer(DynamicLayer):
    """Keys and values in buffers with room to spare: appending a token is a small write, not a concatenation."""

    _ROOM = 64

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states[..., :0, :], value_states[..., :0, :]]
            self._length = 0
        start, self._length = self._length, self._length + key_states.shape[-2]
        for i, states in enumerate((key_states, value_states)):
            if self._length > self._buffers[i].shape[-2]:
                self._buffers[i] = self._enlarged(self._buffers[i][..., :start, :])
            self._buffers[i][..., start : self._length, :] = states
        return self._update_views()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.is_initialized:
            # Whole buffers: index_select of contiguous rows is several times faster than x[indices].
            self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
            self._update_views()

    def _enlarged(self, filled: Tensor) -> Tensor:
        """A larger buffer with this content. Growth by a half keeps the cost of copying linear in the length."""
        *rows, length, width = filled.shape
        buffer = filled.new_empty(*rows, self._length + max(self._ROOM, length // 2), width)
        buffer[..., :length, :] = filled
        return buffer

    def _update_views(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values
