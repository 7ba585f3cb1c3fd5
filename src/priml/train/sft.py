"""Supervised warm start: cosine schedule, loss on the response only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from priml.batch import Batch, Row, collate
from priml.errors import Interrupted, NonFiniteError, RunError
from priml.telemetry.base import Tracker
from priml.train.interrupt import Interruption


class Supervised(Protocol):
    """A model that learns from given responses."""

    def update(self, batch: Batch, *, lr_scale: float) -> tuple[float, float]:
        """One optimizer step; (loss per token, gradient norm)."""
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the response to learn, EOS included, as tokens."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def train_supervised(
    model: Supervised,
    examples: Sequence[Example],
    *,
    epochs: int,
    batch_size: int,
    warmup: float,
    seed: int,
    trackers: Sequence[Tracker],
    interruption: Interruption,
) -> None:
    """Go over the examples `epochs` times; the order is a function of (seed, epoch).

    Raises:
        RunError: the loss or gradient of a step is not finite.
        Interrupted: the user asked for it.
    """
    total = steps_in(len(examples), epochs=epochs, batch_size=batch_size)
    for step, chosen in enumerate(_batches(len(examples), epochs, batch_size, seed), start=1):
        began = time.perf_counter()
        rows = [
            Row(examples[i].prompt_ids, examples[i].response_ids, outcome=0.0, group=n, step_ends=())
            for n, i in enumerate(chosen)
        ]
        batch = collate(rows, step=step)
        scale = learning_rate_scale(step, total, warmup=warmup)
        try:
            loss, grad_norm = model.update(batch, lr_scale=scale)
        except NonFiniteError as error:
            raise RunError(
                f"step {step}: {error}; stopped before the optimizer moved; lower optimizer.lr, or look at the data"
            ) from error
        metrics = {
            "step": step,
            "sft/loss": loss,
            "sft/grad_norm": grad_norm,
            "sft/lr_scale": scale,
            "tokens/trained": int(batch.response_lengths_B.sum()),
            "time/step": round(time.perf_counter() - began, 6),
        }
        for tracker in trackers:
            tracker.log(metrics)
        if interruption.requested and step < total:
            raise Interrupted(
                f"interrupted after step {step} of {total}; a warm start keeps no checkpoints, so nothing was saved: "
                "remove the run folder and start again"
            )


def steps_in(examples: int, *, epochs: int, batch_size: int) -> int:
    """Optimizer steps: the last batch of an epoch may be smaller."""
    return epochs * math.ceil(examples / batch_size)


def learning_rate_scale(step: int, total: int, *, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a cosine down to zero after the last; steps count from 1."""
    rising = max(1, round(warmup * total))
    if step <= rising:
        return step / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (total - rising + 1)))


def _batches(examples: int, epochs: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(examples)
        for start in range(0, examples, batch_size):
            yield order[start : start + batch_size].tolist()
