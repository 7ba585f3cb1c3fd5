"""What every update shares: the order of mini-batches, and a step that refuses numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from priml.batch import Batch
from priml.errors import NonFiniteError
from priml.models.checkpoint import load_optimizer, stage_optimizer
from priml.models.sharded import whole
from priml.types import Write


class Optimizer:
    """AdamW with gradient clipping over the parameters of one role."""

    def __init__(
        self,
        module: nn.Module,
        *,
        role: str,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        fused = all(p.device.type in ("cpu", "cuda") for p in self._parameters)  # one kernel: about 4x faster
        self.adamw = torch.optim.AdamW(self._parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        self._role = role
        self._max_grad_norm = max_grad_norm
        self._lr = lr

    def step(self, loss: float, *, lr_scale: float = 1.0) -> float:
        """Clip, check, move. Returns the gradient norm before clipping.

        Raises:
            NonFiniteError: the loss or the gradient norm is NaN or infinite; nothing has moved.
        """
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.adamw.zero_grad()
            raise NonFiniteError(
                f"{self._role} loss is {loss:.6g} and its gradient norm {norm:.6g}; need finite numbers"
            )
        for group in self.adamw.param_groups:
            group["lr"] = self._lr * lr_scale
        self.adamw.step()
        self.adamw.zero_grad()
        return norm

    def stage(self, folder: Path) -> list[Write]:
        return stage_optimizer(self.adamw, folder)

    def load(self, folder: Path) -> None:
        load_optimizer(self.adamw, folder)


def shuffled_mini_batches(
    rows: Sequence[int], size: int | None, *, epochs: int, seed: int, step: int
) -> Iterator[list[int]]:
    """The rows in mini-batches of `size` (None: all at once), `epochs` times over, each time in another order.

    The order is a function of (seed, step, epoch), so a resumed run repeats it.
    """
    for epoch in range(epochs):
        order = np.random.default_rng([seed, step, epoch]).permutation(rows).tolist()
        for start in range(0, len(order), size or len(order)):
            yield order[start : start + (size or len(order))]


@contextmanager
def attach_batch_on_error(batch: Batch, **more: Tensor) -> Iterator[None]:
    """Attach the batch to a `NonFiniteError` on its way out, so that the run can save it."""
    try:
        yield
    except NonFiniteError as error:
        tensors = {
            "tokens": batch.tokens_BL,
            "loss_mask": batch.loss_mask_BL,
            "prompt_lengths": batch.prompt_lengths_B,
            "response_lengths": batch.response_lengths_B,
            "outcomes": batch.outcomes_B,
            "groups": batch.groups_B,
            **more,
        }
        if batch.old is not None:
            tensors["old_logprobs"] = batch.old.logprobs_BT
        error.tensors = tensors
        raise
