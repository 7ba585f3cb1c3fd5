"""What a sampler is, whatever engine is behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from typing_extensions import TypeVar

from priml.types import Group, Prompt, Trajectory, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Finished = Callable[[Prompt, Trajectory], None]
"""Called with each response as soon as it is finished, while others are still being sampled."""

LOST = "request lost"
"""How the reason of an undecided verdict begins where there is no response: a server did not answer."""


def is_lost(verdict: Verdict | None) -> bool:
    """Whether there is no response behind this verdict, so that it can be asked for again."""
    return verdict is not None and verdict.reason.startswith(LOST)


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How responses are drawn."""

    group_size: int
    temperature: float
    """0: greedy; the log-probs are then those at temperature 1."""
    max_new_tokens: int
    seed: int
    step: int
    """The random numbers of a response depend on seed, step, the problem's id and the sample's index alone."""
    top_p: float = 1.0
    """Draw from the most likely tokens alone, as many as have this probability together. Training takes 1: all."""


WeightsT_contra = TypeVar("WeightsT_contra", contravariant=True, default="PreTrainedModel")


class Sampler(Protocol[WeightsT_contra]):
    """Turns prompts into groups of trajectories. Each trajectory carries the version of the weights that sampled it."""

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Finished | None = None) -> list[Group]:
        """One unverified group per prompt, in the order of the prompts.

        `finished` is called once for each response, from the calling thread, as it ends, with the same objects as in
        the groups. An exception from it ends the sampling.
        """
        ...

    def load(self, weights: WeightsT_contra, version: int) -> None:
        """Sample with these weights from now on."""


class NumberedSampler(Protocol):
    """A sampler that can be told the numbers of its samples."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        finished: Finished | None = None,
        numbers: Sequence[range] | None = None,
    ) -> list[Group]:
        """As above. `numbers`: the sample indices of each prompt; None: the sampler counts them itself."""
        ...


class PoolableSampler(NumberedSampler, Sampler, Protocol):
    """A sampler that can be one of several: the pool then numbers the samples, so that none is drawn twice."""
