"""A sampler of a new kind: what the documentation on extending asks for, in one file."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal

import torch

from priml.config.rollout import SamplerSettings
from priml.config.train import TrainConfig
from priml.factories.rollout import SamplerInputs
from priml.rollout.base import SamplingSpec
from priml.rollout.engine import EngineSampler
from priml.rollout.trajectories import SampledTokens
from priml.rollout.transformers import TransformersSampler
from priml.rollout.weight_sync import WeightUpdate
from priml.types import Prompt


class CopySettings(SamplerSettings):
    kind: Literal["copy"] = "copy"
    max_rows: int = 64

    @property
    def holds_own_weights(self) -> bool:
        return True


class CopyTrainConfig(TrainConfig):
    """The settings of a run whose sampler can be nothing else; in the package the new kind joins the union."""

    sampler: CopySettings = CopySettings()


class CopyEngine(EngineSampler):
    """An engine that keeps a copy of the module."""

    name = "Copy"

    def __init__(self, module: Any, tokenizer: Any, **changes: Any) -> None:
        given = {"dtype": "float32", "precision": "fp32", "longest": 16, "probe_bound": None}
        super().__init__(module, tokenizer, release="1.0", separate_adapters=False, **(given | changes))
        self._copy = copy.deepcopy(module)
        self._sampler = TransformersSampler(
            self._copy, tokenizer, device=torch.device("cpu"), precision="fp32", max_rows=64
        )
        self.is_deaf = False
        self.awake = 0
        self.log: list[str] = []

    def _generate(
        self, prompts: Sequence[Prompt], numbers: Sequence[range], spec: SamplingSpec
    ) -> Generator[SampledTokens, None, None]:
        try:
            for index, group in enumerate(self._sampler.sample(prompts, spec, numbers=numbers)):
                for c in group.trajectories:
                    yield SampledTokens(index, c.sample, c.token_ids, c.logprobs)
        finally:
            self.log.append("ended")

    def _apply(self, update: WeightUpdate) -> None:
        if not self.is_deaf:
            self._copy.load_state_dict(dict(update.tensors), strict=False)
            self._copy.tie_weights()

    def _probe_logprobs(self, token_ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            logits_tV = self._copy(input_ids=torch.tensor([token_ids])).logits[0, :-1]
        return logits_tV.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None]).squeeze(1)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        self.awake += 1
        try:
            yield
        finally:
            self.awake -= 1


def build_copy_engine(settings: CopySettings, inputs: SamplerInputs) -> CopyEngine:
    return CopyEngine(inputs.module, inputs.tokenizer, longest=inputs.longest)
