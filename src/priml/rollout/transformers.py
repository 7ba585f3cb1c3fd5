"""Sampling with a transformers model in this process.

Each prompt is prefilled once for all samples of its group. Rows leave the batch when they finish. Every response has
its own random numbers, so it does not depend on the other rows of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from priml.models.rope import check_steady, frequency_switch
from priml.rollout.base import Finished, SamplingSpec
from priml.rollout.decoding import Decoding, choose_decoding
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
        self._decoding = choose_decoding(module, device)

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
        longest = max((len(prompt.token_ids) for prompt in prompts), default=0) + spec.max_new_tokens
        check_steady(self._module, longest)
        switch = frequency_switch(self._module.config.get_text_config())
        decoding = self._decoding.across(switch) if switch and longest > switch else self._decoding
        numbers = self._numbers.take(prompts, spec) if numbers is None else numbers
        waves = _waves(prompts, numbers, self._max_rows, equal_lengths=decoding.equal_lengths)
        # One autocast context for the whole call: it keeps the lowered copy of each weight until it ends.
        with torch.autocast(self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            sampled = chain.from_iterable(self._generate(wave, spec, decoding) for wave in waves)
            return self._builder.groups(prompts, sampled, self._version, finished)

    def _generate(self, wave: Sequence[_Unit], spec: SamplingSpec, decoding: Decoding) -> Iterator[SampledTokens]:
        """The responses of one wave as they end. Ended rows are taken out of the batch and the cache."""
        rows = [(unit, sample) for unit in wave for sample in unit.samples]
        tokens_RT = torch.zeros(len(rows), spec.max_new_tokens, dtype=torch.long, device=self._device)
        logprobs_RT = torch.zeros(len(rows), spec.max_new_tokens, device=self._device)
        uniforms_RT = None if spec.temperature == 0 else _uniforms(rows, spec).to(self._device)
        eos_E = torch.tensor(self._builder.eos_ids, device=self._device)

        decoder = decoding.decoder(self._module, self._device, max_new_tokens=spec.max_new_tokens)
        logits_bV = decoder.prefill([u.prompt.token_ids for u in wave], [len(u.samples) for u in wave])
        alive_b = torch.arange(len(rows), device=self._device)
        for t in range(spec.max_new_tokens):
            uniforms_b = None if uniforms_RT is None else uniforms_RT[alive_b, t]
            tokens_b, logprobs_b = _choose(logits_bV, uniforms_b, spec.temperature, spec.top_p)
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


def _waves(
    prompts: Sequence[Prompt], numbers: Sequence[range], max_rows: int, *, equal_lengths: bool
) -> Iterator[list[_Unit]]:
    """Units of at most `max_rows` rows in all; prompts of like length together, so that little is padding, or of the
    same length."""
    wave: list[_Unit] = []
    room = max_rows
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids)):
        samples = numbers[index]
        for start in range(samples.start, samples.stop, max_rows):
            part = range(start, min(start + max_rows, samples.stop))
            is_longer = bool(wave) and len(wave[0].prompt.token_ids) < len(prompts[index].token_ids)
            if len(part) > room or (equal_lengths and is_longer):
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


def _choose(
    logits_bV: Tensor, uniforms_b: Tensor | None, temperature: float, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Next tokens by inverting the cumulative distribution (greedy without uniforms), and their log-probs."""
    # At least float32, as in training, whatever the model computes in.
    logits_bV = logits_bV.to(torch.promote_types(logits_bV.dtype, torch.float32))
    logprobs_bV = (logits_bV / (temperature or 1.0)).log_softmax(-1)
    if top_p < 1 and uniforms_b is not None:
        logprobs_bV = _nucleus(logprobs_bV, top_p)
    if uniforms_b is None:
        tokens_b1 = logprobs_bV.argmax(-1, keepdim=True)
    else:
        # float64: over a large vocabulary a float32 sum is off by more than the rare tokens' probability
        cumulative_bV = logprobs_bV.exp().cumsum(-1, dtype=torch.float64)
        targets_b1 = (uniforms_b * cumulative_bV[:, -1]).unsqueeze(1)
        tokens_b1 = torch.searchsorted(cumulative_bV, targets_b1, right=True).clamp(max=logits_bV.shape[1] - 1)
    return tokens_b1.squeeze(1), logprobs_bV.gather(1, tokens_b1).squeeze(1)


def _nucleus(logprobs_bV: Tensor, top_p: float) -> Tensor:
    """The distribution over the fewest tokens that have `top_p` together (Holtzman et al. 2020, arXiv 1904.09751)."""
    sorted_bV, order_bV = logprobs_bV.sort(dim=-1, descending=True, stable=True)
    before_bV = sorted_bV.exp().cumsum(-1, dtype=torch.float64) - sorted_bV.exp()
    is_out_bV = torch.zeros_like(logprobs_bV, dtype=torch.bool).scatter(-1, order_bV, before_bV >= top_p)
    return logprobs_bV.masked_fill(is_out_bV, -torch.inf).log_softmax(-1)
