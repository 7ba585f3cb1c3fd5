"""Sampling with a transformers model in this process.

Each prompt is prefilled once for all samples of its group. Rows leave the batch when they finish. Every response has
its own random numbers, so it does not depend on the other rows of the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from priml.errors import ModelError
from priml.rollout.base import Finished, SamplingSpec
from priml.rollout.trajectories import SampledTokens, SampleNumbers, TrajectoryBuilder, draw_key
from priml.types import Group, Prompt, Tokenizer


class TransformersSampler:
    """A `Sampler` over any Hugging Face causal language model."""

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        precision: str,
        max_rows: int,
        version: int = 0,
    ) -> None:
        self._module = module
        self._device = device
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._max_rows = max_rows
        self._version = version
        self._builder = TrajectoryBuilder(module, tokenizer)
        self._numbers = SampleNumbers()
        _verify_decoding(module, device)

    def load(self, weights: PreTrainedModel, version: int) -> None:
        """Read the policy's live module from now on: in one process there is nothing to copy."""
        self._module = weights
        self._version = version

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        finished: Finished | None = None,
        numbers: Sequence[range] | None = None,
    ) -> list[Group]:
        numbers = self._numbers.take(prompts, spec) if numbers is None else numbers
        waves = _waves(prompts, numbers, self._max_rows)
        # One autocast context for the whole call: it keeps the lowered copy of each weight until it ends.
        with torch.autocast(self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            sampled = chain.from_iterable(self._generate(wave, spec) for wave in waves)
            return self._builder.groups(prompts, sampled, self._version, finished)

    def _generate(self, wave: Sequence[_Unit], spec: SamplingSpec) -> Iterator[SampledTokens]:
        """The responses of one wave as they end. Ended rows are taken out of the batch and the cache."""
        rows = [(unit, sample) for unit in wave for sample in unit.samples]
        tokens_RT = torch.zeros(len(rows), spec.max_new_tokens, dtype=torch.long, device=self._device)
        logprobs_RT = torch.zeros(len(rows), spec.max_new_tokens, device=self._device)
        uniforms_RT = None if spec.temperature == 0 else _uniforms(rows, spec).to(self._device)
        eos_E = torch.tensor(self._builder.eos_ids, device=self._device)

        decoder = _Decoder(self._module, self._device, max_new_tokens=spec.max_new_tokens)
        logits_bV = decoder.prefill([u.prompt.token_ids for u in wave], [len(u.samples) for u in wave])
        alive_b = torch.arange(len(rows), device=self._device)
        for t in range(spec.max_new_tokens):
            uniforms_b = None if uniforms_RT is None else uniforms_RT[alive_b, t]
            tokens_b, logprobs_b = _choose(logits_bV, uniforms_b, spec.temperature)
            tokens_RT[alive_b, t] = tokens_b
            logprobs_RT[alive_b, t] = logprobs_b.float()
            is_last = t + 1 == spec.max_new_tokens
            ended_b = torch.ones_like(tokens_b, dtype=torch.bool) if is_last else torch.isin(tokens_b, eos_E)
            if bool(ended_b.any()):
                ended = alive_b[ended_b]
                written = (tokens_RT[ended, : t + 1].int().cpu().numpy(), logprobs_RT[ended, : t + 1].cpu().numpy())
                for row, ids, logprobs in zip(ended.tolist(), *written, strict=True):
                    unit, sample = rows[row]
                    yield SampledTokens(unit.index, sample, ids, logprobs)
                going = (~ended_b).nonzero().squeeze(1)
                if len(going) == 0:
                    return
                alive_b, tokens_b = alive_b[going], tokens_b[going]
                decoder.keep(going)
            logits_bV = decoder.step(tokens_b)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Some samples of one prompt, generated together."""

    index: int
    prompt: Prompt
    samples: range


def _waves(prompts: Sequence[Prompt], numbers: Sequence[range], max_rows: int) -> Iterator[list[_Unit]]:
    """Units of at most `max_rows` rows in all; prompts of like length together, so that little is padding."""
    wave: list[_Unit] = []
    room = max_rows
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids)):
        samples = numbers[index]
        for start in range(samples.start, samples.stop, max_rows):
            part = range(start, min(start + max_rows, samples.stop))
            if len(part) > room:
                yield wave
                wave, room = [], max_rows
            wave.append(_Unit(index=index, prompt=prompts[index], samples=part))
            room -= len(part)
    if wave:
        yield wave


def _uniforms(rows: Sequence[tuple[_Unit, int]], spec: SamplingSpec) -> Tensor:
    """Uniform numbers [R, T], each row from the random stream of its response."""
    uniforms_RT = np.empty((len(rows), spec.max_new_tokens))
    for row, (unit, sample) in enumerate(rows):
        key = np.frombuffer(draw_key(spec, unit.prompt.problem.id, sample), dtype=np.uint64)
        uniforms_RT[row] = np.random.Generator(np.random.Philox(key=key)).random(spec.max_new_tokens)
    return torch.from_numpy(uniforms_RT)


def _choose(logits_bV: Tensor, uniforms_b: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Next tokens by inverting the cumulative distribution (greedy without uniforms), and their log-probs."""
    # At least float32, as in training, whatever the model computes in.
    logits_bV = logits_bV.to(torch.promote_types(logits_bV.dtype, torch.float32))
    logprobs_bV = (logits_bV / (temperature or 1.0)).log_softmax(-1)
    if uniforms_b is None:
        tokens_b1 = logprobs_bV.argmax(-1, keepdim=True)
    else:
        # float64: over a large vocabulary a float32 sum is off by more than the rare tokens' probability
        cumulative_bV = logprobs_bV.exp().cumsum(-1, dtype=torch.float64)
        targets_b1 = (uniforms_b * cumulative_bV[:, -1]).unsqueeze(1)
        tokens_b1 = torch.searchsorted(cumulative_bV, targets_b1, right=True).clamp(max=logits_bV.shape[1] - 1)
    return tokens_b1.squeeze(1), logprobs_bV.gather(1, tokens_b1).squeeze(1)


class _Decoder:
    """The model with its cache."""

    def __init__(self, module: PreTrainedModel, device: torch.device, *, max_new_tokens: int) -> None:
        self._module = module
        self._device = device
        self._max_new_tokens = max_new_tokens
        # ALiBi models count positions themselves; a few compute all logits, of which we keep the last.
        self._accepted = {"position_ids", "logits_to_keep"} & inspect.signature(module.forward).parameters.keys()
        # The model's own kind of cache, but its plain layers do not copy everything at every token.
        self._cache = DynamicCache(config=module.config)
        layers = self._cache.layers
        self._cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in layers]
        self._length = 0
        self._mask_bL: Tensor | None = None
        """1 except on left padding, with room for every token to come; None when there is no padding."""
        self._positions_b = torch.empty(0)

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Logits [rows, V] after each prompt, rows = its number of samples; left padding when lengths differ."""
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
        logits_pV = self._forward(tokens_pl.to(self._device), positions_pl.to(self._device))
        rows = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(repeats)).to(self._device)
        self._positions_b = positions_pl[:, -1].to(self._device)
        self.keep(rows)
        return logits_pV[rows]

    def step(self, tokens_b: Tensor) -> Tensor:
        """Logits [rows, V] after one more token per row."""
        self._length += 1
        self._positions_b = self._positions_b + 1
        return self._forward(tokens_b.unsqueeze(1), self._positions_b.unsqueeze(1))

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch. A row that is named twice is doubled."""
        self._cache.batch_select_indices(rows)
        self._positions_b = self._positions_b[rows]
        self._mask_bL = None if self._mask_bL is None else self._mask_bL[rows]

    def _forward(self, tokens_bl: Tensor, positions_bl: Tensor) -> Tensor:
        optional = {"position_ids": positions_bl, "logits_to_keep": 1}
        output = self._module(
            input_ids=tokens_bl,
            attention_mask=None if self._mask_bL is None else self._mask_bL[:, : self._length],
            past_key_values=self._cache,
            use_cache=True,
            **{name: optional[name] for name in self._accepted},
        )
        return output.logits[:, -1]


@torch.no_grad()
def _verify_decoding(module: PreTrainedModel, device: torch.device) -> None:
    """Compare once with no cache: some architectures keep state that left padding disturbs.

    Raises:
        ModelError: a token decoded behind a padded prompt has other log-probs than in a plain forward pass.
    """
    prompts, more = [[0, 1, 2], [1]], [2, 0]
    decoder = _Decoder(module, device, max_new_tokens=1)
    decoder.prefill(prompts, [1, 1])
    decoded_bV = decoder.step(torch.tensor(more, device=device)).double().log_softmax(-1)
    for ours_V, prompt, token in zip(decoded_bV, prompts, more, strict=True):
        plain_V = module(input_ids=torch.tensor([[*prompt, token]], device=device), use_cache=False).logits[0, -1]
        expected_V = plain_V.double().log_softmax(-1)
        gap = expected_V.max() - expected_V.min()
        if not bool((ours_V - expected_V).abs().max() <= 1e-3 * gap + 1e-5):  # NaN is not below anything
            raise ModelError(
                f"{type(module).__name__}: decoding with a key-value cache and left padding does not reproduce its own "
                "forward pass, so it cannot be sampled from here; choose another architecture"
            )


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

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            # Whole buffers: index_select of contiguous rows is several times faster than x[indices].
            self._buffers = [buffer.index_select(0, indices) for buffer in self._buffers]
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
