"""Which samples of a prompt are drawn, and what their random numbers depend on: the same for every engine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from priml.rollout.base import SamplingSpec
from priml.types import Prompt


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
