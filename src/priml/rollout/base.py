"""What a sampler is, whatever engine is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from priml.types import Group, Prompt, WeightSource


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How responses are drawn."""

    group_size: int
    temperature: float
    """0: greedy; the log-probs are then those at temperature 1."""
    max_new_tokens: int
    seed: int
    step: int
    """With `seed`, the problem's id and the sample's index, all that the random numbers of a response depend on."""


class Sampler(Protocol):
    """Turns prompts into groups of completions, each stamped with the weight version that spoke."""

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Group]:
        """One unverified group per prompt, in the order of the prompts."""
        ...

    def load(self, weights: WeightSource, version: int) -> None:
        """Speak with these weights from now on."""
        ...
