"""What samplers share whose engine keeps a copy of the weights: updates, their verification, checks of lengths.

A subclass is one engine. It implements `_generate`, `_apply` and `_probe_logprobs`, and `_awake` when it can give
its memory back between calls.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from priml.errors import ModelError, RunError
from priml.rollout.base import Finished, SamplingSpec
from priml.rollout.trajectories import SampledTokens, SampleNumbers, TrajectoryBuilder
from priml.rollout.weight_sync import WeightUpdate, probe_ids, verification_updates, weight_update_from
from priml.types import Group, Prompt, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Largest mean difference by rounding, in nats per token. Measured are 1e-6 (float32) and 1e-2 (bfloat16)."""
_FAILURES = (RunError, RuntimeError, ValueError, NotImplementedError)
"""What engines raise when they cannot run a model."""


class EngineSampler(ABC):
    """A `Sampler` over an engine in this process. The engine computes what the policy computes, or the run stops.

    A new engine may have arbitrary weights: call `verify_weight_sync` or `verify_weight_sync_with` before `sample`.
    """

    name: ClassVar[str]
    """The engine's name in messages."""

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        release: str,
        dtype: str,
        precision: str,
        longest: int,
        probe_bound: float | None,
        separate_adapters: bool,
        version: int = 0,
    ) -> None:
        """`release` is the engine's version, `dtype` what it computes in, `precision` what the trainer computes in.
        `longest`: tokens of the longest prompt with its response. `separate_adapters`: adapters stay beside the weights
        instead of being merged. `version` is that of the first weights."""
        self._label = f"{self.name} {release}"
        self._model_name = type(module).__name__
        self._dtype = dtype
        self._bound = probe_bound or _BOUNDS[dtype]
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._longest = longest
        self._separate_adapters = separate_adapters
        self._version = version
        self._probe_ids = probe_ids(tokenizer)
        self._builder = TrajectoryBuilder(module, tokenizer)
        self._numbers = SampleNumbers()

    @abstractmethod
    def _generate(
        self, prompts: Sequence[Prompt], numbers: Sequence[range], spec: SamplingSpec
    ) -> Generator[SampledTokens, None, None]:
        """All samples of all prompts, as they finish. Closing the generator drops those that still run.

        Raises:
            RunError: the engine failed.
        """

    @abstractmethod
    def _apply(self, update: WeightUpdate) -> None:
        """Replace weights, adapters or both, and forget keys and values of the old ones."""

    @abstractmethod
    def _probe_logprobs(self, token_ids: Sequence[int]) -> Tensor:
        """The engine's log-probs [t] of these tokens after the first."""

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """The engine has its memory inside the block. An engine that sleeps between calls overrides this."""
        yield

    def verify_weight_sync_with(self, module: PreTrainedModel) -> None:
        """`verify_weight_sync` with a module in this process, which is left as it was."""
        updates = verification_updates(
            module, self._probe_ids, self._autocast_dtype, separate_adapters=self._separate_adapters
        )
        self.verify_weight_sync(updates)

    def verify_weight_sync(self, updates: Iterable[WeightUpdate]) -> None:
        """Apply other weights and then the real ones, and compare the probe each time.

        Raises:
            ModelError: one of them did not arrive, or the engine cannot run this model at all.
        """
        try:
            with self._awake():
                differences = [self._difference_after(update) for update in updates]
        except _FAILURES as error:
            raise ModelError(
                f"{self._model_name}: {self._label} cannot run this model here: {error_line(error)}; "
                "use sampler.kind: transformers, or another model"
            ) from error
        if not all(difference <= self._bound for difference in differences):  # NaN is not below anything
            raise ModelError(
                f"{self._model_name}: {self._label} does not follow when this model's weights change: its "
                f"log-probs differ from the trainer's by {max(differences):.2g} nats per token, the bound is "
                f"{self._bound:g} ({self._dtype}); try sampler.dtype: float32, or use sampler.kind: transformers"
            )

    def load(self, weights: PreTrainedModel, version: int) -> None:
        """`receive` from a module in this process."""
        separate, ids = self._separate_adapters, self._probe_ids
        options = {"separate_adapters": separate, "all_weights": not separate}
        self.receive(weight_update_from(weights, ids, self._autocast_dtype, **options), version)

    def receive(self, update: WeightUpdate, version: int) -> None:
        """Replace the engine's weights, and compare the probe.

        Raises:
            RunError: the engine's log-probs of the probe are not the trainer's.
        """
        with self._awake():
            difference = self._difference_after(update)
        self._version = version
        if not difference <= self._bound:
            raise RunError(
                f"weights of version {version} did not arrive in {self.name} as they are: its log-probs differ from "
                f"the trainer's by {difference:.2g} nats per token, the bound is {self._bound:g} ({self._dtype}). "
                "Go on from the last checkpoint with sampler.dtype: float32 or sampler.kind: transformers; raise "
                "sampler.probe_bound only if the difference has grown slowly, as rounding does"
            )

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        finished: Finished | None = None,
        numbers: Sequence[range] | None = None,
    ) -> list[Group]:
        """As in `Sampler`.

        Raises:
            RunError: the engine failed, or a prompt and its response could be longer than the engine was made for.
        """
        needed = max((len(prompt.token_ids) for prompt in prompts), default=0) + spec.max_new_tokens
        if needed > self._longest:
            raise RunError(
                f"a prompt with its response may be {needed} tokens long, and {self.name} was started for "
                f"{self._longest}; start it for the longest that will come"
            )
        numbers = self._numbers.take(prompts, spec) if numbers is None else numbers
        with self._awake(), contextlib.closing(self._generate(prompts, numbers, spec)) as sampled:
            return self._builder.groups(prompts, sampled, self._version, finished)

    def _difference_after(self, update: WeightUpdate) -> float:
        """Apply the update; the mean absolute difference of the probe afterwards, in nats per token."""
        self._apply(update)
        return float((self._probe_logprobs(self._probe_ids) - update.probe_logprobs_t).abs().mean())


def engine_dtype(dtype: str, precision: str) -> str:
    """What an engine computes in: `dtype`, or with `auto` what the trainer does."""
    return {"fp32": "float32", "bf16": "bfloat16"}[precision] if dtype == "auto" else dtype


def error_line(error: Exception) -> str:
    """The most useful line of an engine's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    chosen = next((line for line in lines if line.startswith("Value error")), first)
    return chosen.removeprefix("Value error, ").split(" [type=")[0].rstrip(".")
