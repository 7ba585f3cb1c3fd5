"""Sampling with a transformers model in this process.

Each prompt is prefilled once and its key-value cache shared out to the group's samples; rows leave the batch when they
finish; and every response draws from a random stream of its own, so it does not matter what it is batched with.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from priml.rollout.base import SamplingSpec
from priml.types import Completion, Group, Prompt, WeightSource


class TransformersSampler:
    """A `Sampler` over any Hugging Face causal language model."""

    def __init__(
        self, module: Any, tokenizer: Any, *, device: torch.device, precision: str, max_rows: int, version: int = 0
    ) -> None:
        self._module = module
        self._tokenizer = tokenizer
        self._device = device
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._max_rows = max_rows
        self._version = version
        self._eos_ids = _eos_ids(module, tokenizer)
        self._drawn: Counter[str] = Counter()
        self._drawn_at: tuple[int, int] | None = None

    def load(self, weights: WeightSource, version: int) -> None:
        """Read the policy's live module from now on: in one process there is nothing to copy."""
        self._module = weights.module()
        self._version = version

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Group]:
        """One group per prompt, in the order of the prompts.

        A problem that comes up again within a step continues its sample numbering, so it never repeats its draws.
        """
        completions: list[list[Completion]] = [[] for _ in prompts]
        for wave in _waves(prompts, self._number(prompts, spec), self._max_rows):
            for unit, made in zip(wave, self._generate(wave, spec), strict=True):
                completions[unit.index] += made
        return [Group(prompt=p, completions=tuple(c)) for p, c in zip(prompts, completions, strict=True)]

    def _number(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[range]:
        """Sample indices of each prompt: the first time in a step 0..K-1, the next time K..2K-1."""
        if self._drawn_at != (spec.seed, spec.step):
            self._drawn_at, self._drawn = (spec.seed, spec.step), Counter()
        numbers: list[range] = []
        for prompt in prompts:
            first = self._drawn[prompt.problem.id]
            self._drawn[prompt.problem.id] += spec.group_size
            numbers.append(range(first, first + spec.group_size))
        return numbers

    def _generate(self, wave: Sequence[_Unit], spec: SamplingSpec) -> list[list[Completion]]:
        """All responses of one wave, in lock step; finished rows are taken out of the batch and of the cache."""
        rows = [(unit, sample) for unit in wave for sample in unit.samples]
        tokens_RT = torch.zeros(len(rows), spec.max_new_tokens, dtype=torch.long, device=self._device)
        logprobs_RT = torch.zeros(len(rows), spec.max_new_tokens, device=self._device)
        lengths_R = torch.full((len(rows),), spec.max_new_tokens, device=self._device)
        uniforms_RT = None if spec.temperature == 0 else _uniforms(rows, spec).to(self._device)
        eos_E = torch.tensor(self._eos_ids, device=self._device)

        decoder = _Decoder(self._module, self._device, self._autocast_dtype)
        logits_bV = decoder.prefill([u.prompt.token_ids for u in wave], [len(u.samples) for u in wave])
        alive_b = torch.arange(len(rows), device=self._device)
        for t in range(spec.max_new_tokens):
            uniforms_b = None if uniforms_RT is None else uniforms_RT[alive_b, t]
            tokens_b, logprobs_b = _choose(logits_bV, uniforms_b, spec.temperature)
            tokens_RT[alive_b, t] = tokens_b
            logprobs_RT[alive_b, t] = logprobs_b
            ended_b = torch.isin(tokens_b, eos_E)
            if bool(ended_b.any()):
                lengths_R[alive_b[ended_b]] = t + 1
                going = (~ended_b).nonzero().squeeze(1)
                alive_b, tokens_b = alive_b[going], tokens_b[going]
                decoder.keep(going)
            if len(alive_b) == 0 or t + 1 == spec.max_new_tokens:
                break
            logits_bV = decoder.step(tokens_b)
        return self._complete(wave, tokens_RT.cpu(), logprobs_RT.cpu(), lengths_R.tolist())

    def _complete(
        self, wave: Sequence[_Unit], tokens_RT: Tensor, logprobs_RT: Tensor, lengths: Sequence[int]
    ) -> list[list[Completion]]:
        completions: list[list[Completion]] = []
        row = 0
        for unit in wave:
            made: list[Completion] = []
            for sample in unit.samples:
                ids = tokens_RT[row, : lengths[row]].tolist()
                made.append(
                    Completion(
                        token_ids=tuple(ids),
                        text=self._tokenizer.decode(ids, skip_special_tokens=True),
                        finish_reason="stop" if ids[-1] in self._eos_ids else "length",
                        logprobs=tuple(logprobs_RT[row, : lengths[row]].tolist()),
                        sample=sample,
                        weight_version=self._version,
                    )
                )
                row += 1
            completions.append(made)
        return completions


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
    """One uniform number per row and token, from a stream that (seed, step, problem, sample) alone determine."""
    uniforms_RT = np.empty((len(rows), spec.max_new_tokens))
    for row, (unit, sample) in enumerate(rows):
        name = f"{spec.seed}/{spec.step}/{sample}/{unit.prompt.problem.id}"
        key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), dtype=np.uint64)
        uniforms_RT[row] = np.random.Generator(np.random.Philox(key=key)).random(spec.max_new_tokens)
    return torch.from_numpy(uniforms_RT)


def _choose(logits_bV: Tensor, uniforms_b: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Next tokens by inverting the cumulative distribution (greedy without uniforms), and their log-probs."""
    logprobs_bV = (logits_bV.float() / (temperature or 1.0)).log_softmax(-1)
    if uniforms_b is None:
        tokens_b1 = logprobs_bV.argmax(-1, keepdim=True)
    else:
        # float64: over a large vocabulary a float32 sum is off by more than the rare tokens' probability
        cumulative_bV = logprobs_bV.exp().cumsum(-1, dtype=torch.float64)
        targets_b1 = (uniforms_b * cumulative_bV[:, -1]).unsqueeze(1)
        tokens_b1 = torch.searchsorted(cumulative_bV, targets_b1, right=True).clamp(max=logits_bV.shape[1] - 1)
    return tokens_b1.squeeze(1), logprobs_bV.gather(1, tokens_b1).squeeze(1)


def _eos_ids(module: Any, tokenizer: Any) -> list[int]:
    """Chat models often end turns with a token that is not the tokenizer's EOS: take both."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({tokenizer.eos_token_id, *listed})


class _Decoder:
    """The model with its cache: prefill once per prompt, then one token per row and step."""

    def __init__(self, module: Any, device: torch.device, autocast_dtype: torch.dtype | None) -> None:
        self._module = module
        self._device = device
        self._autocast_dtype = autocast_dtype
        self._cache: Any = _growing_cache(module.config)
        self._mask_bl: Tensor | None = None
        self._positions_b: Tensor | None = None

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Logits [rows, V] after each prompt, rows = its number of samples; left padding when lengths differ."""
        longest = max(len(p) for p in prompts)
        tokens_pl = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask_pl = torch.zeros(len(prompts), longest, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens_pl[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask_pl[i, longest - len(prompt) :] = 1
        needs_mask = bool((mask_pl == 0).any())
        rows = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(repeats)).to(self._device)
        mask_pl = mask_pl.to(self._device)
        positions_pl = (mask_pl.cumsum(-1) - 1).clamp(min=0)
        logits_pV = self._forward(tokens_pl.to(self._device), positions_pl, mask_pl if needs_mask else None)
        self._cache.batch_select_indices(rows)
        self._mask_bl = mask_pl[rows] if needs_mask else None
        self._positions_b = positions_pl[rows, -1]
        return logits_pV[rows]

    def step(self, tokens_b: Tensor) -> Tensor:
        """Logits [rows, V] after one more token per row."""
        assert self._positions_b is not None, "prefill comes first"
        self._positions_b = self._positions_b + 1
        if self._mask_bl is not None:
            self._mask_bl = torch.cat([self._mask_bl, self._mask_bl.new_ones(len(tokens_b), 1)], dim=1)
        return self._forward(tokens_b.unsqueeze(1), self._positions_b.unsqueeze(1), self._mask_bl)

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows from the cache."""
        assert self._positions_b is not None, "prefill comes first"
        self._cache.batch_select_indices(rows)
        self._positions_b = self._positions_b[rows]
        self._mask_bl = None if self._mask_bl is None else self._mask_bl[rows]

    def _forward(self, tokens_bl: Tensor, positions_bl: Tensor, mask_bl: Tensor | None) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            output = self._module(
                input_ids=tokens_bl,
                attention_mask=mask_bl,
                position_ids=positions_bl,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1]


def _growing_cache(config: Any) -> DynamicCache:
    """The model's own kind of cache, its plain layers replaced by ones that do not copy everything at every token."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with room to spare: appending a token is a small write, not a concatenation."""

    _SLACK = 128

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = key_states.new_empty(0), value_states.new_empty(0)
            self._length = 0
        end = self._length + key_states.shape[-2]
        if self._buffers[0].dim() == 1 or end > self._buffers[0].shape[-2]:
            self._buffers = (
                self._enlarged(self._buffers[0], key_states, end),
                self._enlarged(self._buffers[1], value_states, end),
            )
        self._buffers[0][..., self._length : end, :] = key_states
        self._buffers[1][..., self._length : end, :] = value_states
        self._length = end
        return self._view()

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self._buffers = self._buffers[0][indices], self._buffers[1][indices]
            self._view()

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., : self._length, :] for buffer in self._buffers)
        return self.keys, self.values

    def _enlarged(self, buffer: Tensor, states: Tensor, end: int) -> Tensor:
        """A larger buffer with the same content; growth by a half keeps copying linear in the length."""
        capacity = end + max(self._SLACK, self._length // 2)
        bigger = states.new_zeros(*states.shape[:-2], capacity, states.shape[-1])
        if self._length:
            bigger[..., : self._length, :] = buffer[..., : self._length, :]
        return bigger
