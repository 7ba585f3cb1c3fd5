"""What the PRM's log-probs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from priml.batch import Batch, TokenScores
from priml.learners.engine import Scorer


class Reference(Protocol):
    """What the PRM's log-probs are compared with."""

    @property
    def temperature(self) -> float:
        """The temperature its log-probs are taken at; the PRM's are taken at the same."""
        ...

    def logprobs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """[B, T] log-probs of the response tokens of these rows, on the CPU, no gradient. Other rows are not read."""
        ...

    def digest(self) -> str | None:
        """sha256 of frozen weights; None if there are none."""


class FrozenReference:
    """A model that is never trained: by default the PRM's own initial weights (the paper's choice)."""

    temperature = 1.0

    def __init__(self, model: Scorer[TokenScores]) -> None:
        self.model = model

    def logprobs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Score with the frozen model: same shapes and code path as the PRM, so equal weights give equal numbers."""
        return self.model.scores(batch, rows).logprobs_BT

    def digest(self) -> str:
        return self.model.digest()


class RolloutReference:
    """The policy that produced the responses, through the log-probs it already has: no third model."""

    def __init__(self, *, temperature: float) -> None:
        self.temperature = temperature

    def logprobs(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """The rollout policy's log-probs."""
        return batch.old_logprobs_BT

    def digest(self) -> None:
        """None: the policy goes on to learn."""
