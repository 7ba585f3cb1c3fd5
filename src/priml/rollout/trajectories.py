"""The same for every engine: which samples are drawn, their random numbers, and the groups of trajectories."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from priml.errors import RunError
from priml.rollout.base import Finished, SamplingSpec
from priml.types import Group, Prompt, Segment, Tokenizer, Trajectory


class SampleNumbers:
    """Numbers the responses to each problem. A problem that returns within a step never repeats its draws."""

    def __init__(self) -> None:
        self._drawn: Counter[str] = Counter()
        self._drawn_at: tuple[int, int] | None = None

    def take(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[range]:
        """Sample indices of each prompt: the first time in a step 0..K-1, then K..2K-1; greedy draws nothing."""
        if spec.temperature == 0:
            return [range(spec.group_size) for _ in prompts]
        if self._drawn_at != (spec.seed, spec.step):
            self._drawn_at, self._drawn = (spec.seed, spec.step), Counter()
        numbers: list[range] = []
        for prompt in prompts:
            first = self._drawn[prompt.problem.id]
            self._drawn[prompt.problem.id] += spec.group_size
            numbers.append(range(first, first + spec.group_size))
        return numbers


def draw_key(spec: SamplingSpec, problem_id: str, sample: int) -> bytes:
    """16 bytes that (seed, step, problem, sample) alone determine: the key of a response's random numbers."""
    name = f"{spec.seed}/{spec.step}/{sample}/{problem_id}"
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One finished response, as an engine returns it."""

    prompt: int
    """Index of its prompt."""
    sample: int
    token_ids: NDArray[np.int32]
    """With the end-of-sequence token, if there is one."""
    logprobs: NDArray[np.float32]
    """One for each token."""


def build_groups(prompts: Sequence[Prompt], trajectories: Sequence[Sequence[Trajectory]]) -> list[Group]:
    """One group for each prompt, its trajectories in the order of their samples."""
    in_order = (sorted(group, key=lambda trajectory: trajectory.sample) for group in trajectories)
    return [Group(prompt, tuple(group)) for prompt, group in zip(prompts, in_order, strict=True)]


class TrajectoryBuilder:
    """Turns the tokens of one model into trajectories."""

    def __init__(self, module: object, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids(module, tokenizer)

    def groups(
        self, prompts: Sequence[Prompt], sampled: Iterable[SampledTokens], version: int, finished: Finished | None
    ) -> list[Group]:
        """One group for each prompt, in the order of the prompts, with the samples in their order.

        Raises:
            RunError: the model's logits are not finite; what was drawn from them means nothing.
        """
        trajectories: list[list[Trajectory]] = [[] for _ in prompts]
        for tokens in sampled:
            if np.isnan(tokens.logprobs).any():
                raise RunError(
                    f"sampler: found logits that are not finite numbers after {version} updates, at token "
                    f"{np.isnan(tokens.logprobs).argmax() + 1} of a response to problem "
                    f"{prompts[tokens.prompt].problem.id!r}; go on from an earlier checkpoint, with a lower learning "
                    "rate or backend.precision: fp32"
                )
            trajectory = self._trajectory(tokens, version)
            trajectories[tokens.prompt].append(trajectory)
            if finished is not None:
                finished(prompts[tokens.prompt], trajectory)
        return build_groups(prompts, trajectories)

    def _trajectory(self, tokens: SampledTokens, version: int) -> Trajectory:
        return Trajectory(
            segments=(Segment(tokens.token_ids, tokens.logprobs, version),),
            text=self._tokenizer.decode(tokens.token_ids, skip_special_tokens=True),
            finish_reason="stop" if tokens.token_ids[-1] in self.eos_ids else "length",
            sample=tokens.sample,
        )


def eos_ids(module: object, tokenizer: Tokenizer) -> list[int]:
    """The tokenizer's EOS, and those of the generation config: chat models often end turns with another token."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({tokenizer.eos_token_id, *listed})
