"""What the PRM's log-probs are compared with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from priml.batch import Batch
from priml.models.forward import LanguageModel, MicroBatch


class Reference(Protocol):
    """What the PRM's log-probs are compared with."""

    @property
    def temperature(self) -> float:
        """The temperature its log-probs are taken at; the PRM's are taken at the same."""
        ...

    def logprobs(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """[b, t] log-probs of the micro-batch's response tokens, no gradient."""
        ...


class FrozenReference:
    """A model that is never trained: by default the PRM's own initial weights (the paper's choice)."""

    temperature = 1.0

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    @torch.no_grad()
    def logprobs(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """Score with the frozen model: same shapes and code path as the PRM, so equal weights give equal numbers."""
        return self.model.score(micro)[0]


class RolloutReference:
    """The policy that produced the responses, through the log-probs it already has: no third model."""

    def __init__(self, *, temperature: float) -> None:
        self.temperature = temperature

    def logprobs(self, batch: Batch, micro: MicroBatch) -> Tensor:
        """The rollout policy's log-probs."""
        return micro.take(batch.old_logprobs_BT)
