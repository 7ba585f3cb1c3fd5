"""Learning from given responses, whatever the role: which examples each step learns from, and the loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from priml.batch import Batch, Row, collate
from priml.learners.base import Report, Trainable
from priml.training.run import Run

_SHARES = ("accuracy", "auc", "pair_accuracy")
"""Held-out numbers between 0 and 1, with 1/2 for chance."""


class Learner(Trainable, Protocol):
    """A role that learns from given responses."""

    def update(self, batch: Batch, *, lr_scale: float) -> Report:
        """One optimizer step at this share of the learning rate.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        ...


@dataclass(frozen=True, slots=True)
class DataSchedule:
    """Which examples each step learns from, and how fast. Steps count from 1.

    All of it follows from these numbers and the step, so a resumed run needs no other state.
    """

    examples: int
    epochs: int
    """Passes over the examples, each in an order of its own, a function of (seed, epoch)."""
    batch: int
    """Examples per step; the last step of an epoch may have fewer."""
    warmup: float
    """Share of the steps with rising learning rate."""
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs."""
        return self.epochs * self._steps_per_epoch

    def examples_in(self, step: int) -> list[int]:
        """Indices of the examples of a step."""
        epoch, position = divmod(step - 1, self._steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
        return order[position * self.batch : (position + 1) * self.batch].tolist()

    def lr_scale(self, step: int) -> float:
        """Linear warm-up, then a cosine down to zero after the last step, as a share of the peak learning rate."""
        rising = max(1, round(self.warmup * self.steps))
        if step <= rising:
            return step / rising
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (self.steps - rising + 1)))

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Evaluation on responses that are not learnt from, after every so many steps and after the last."""

    evaluate: Callable[[], dict[str, float]]
    every: int | None
    steps: int

    def metrics(self, step: int) -> dict[str, float]:
        """Shares as `eval/...`, other numbers as `held_out/...`; nothing when no evaluation is due."""
        if step != self.steps and (self.every is None or step % self.every != 0):
            return {}
        began = time.perf_counter()
        found = self.evaluate()
        named = {f"{'eval' if name in _SHARES else 'held_out'}/{name}": value for name, value in found.items()}
        return named | {"time/evaluate": round(time.perf_counter() - began, 6)}


def train_supervised(
    learner: Learner,
    schedule: DataSchedule,
    units: Sequence[Sequence[Row]],
    run: Run,
    held_out: HeldOut | None = None,
) -> None:
    """All steps. `units` are learnt whole: single responses, pairs, or the responses to one prompt."""
    for step in run.steps():
        batch = collate([row for i in schedule.examples_in(step) for row in units[i]], step=step)
        report = learner.update(batch, lr_scale=schedule.lr_scale(step))
        metrics = report.metrics() | (held_out.metrics(step) if held_out else {})
        run.end_step(step, {**metrics, "tokens/trained": int(batch.response_lengths_B.sum())})
