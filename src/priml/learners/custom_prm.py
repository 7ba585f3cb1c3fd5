"""A user's own process reward model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from priml.batch import Batch
from priml.learners.base import NoModel, ProcessRewards
from priml.maths.custom import check_tokens
from priml.types import Tokenizer


class CustomPrm(NoModel):
    """The `Prm` around a user's `function(batch, tokenizer) -> rewards_BT`. It does not learn and has no checkpoint."""

    def __init__(self, function: Callable[[Batch, Tokenizer], Tensor], tokenizer: Tokenizer, *, name: str) -> None:
        """`name` stands for the function in messages."""
        self._function = function
        self._tokenizer = tokenizer
        self._name = name

    def update(self, batch: Batch) -> None: ...

    def rewards(self, batch: Batch) -> ProcessRewards:
        """The function's rewards.

        Raises:
            UsageError: they are not one finite number for each response token.
        """
        rewards_BT = check_tokens(self._function(batch, self._tokenizer), batch.mask_BT, self._name)
        return ProcessRewards(rewards_BT=rewards_BT.detach().float().cpu())
