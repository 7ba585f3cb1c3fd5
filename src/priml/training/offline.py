"""Labelled responses on their way into batches, and a learner that is examined on others as it goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from priml.batch import Batch, Row, collate
from priml.training.supervised import Learner, Report
from priml.types import Write

_SHARES = ("accuracy", "auc", "pair_accuracy")
"""What of an examination lies between 0 and 1, with 1/2 for chance."""


class Examinable(Learner, Protocol):
    """A learner that can be asked what it has learnt."""

    def examine(self, batches: Sequence[Batch]) -> dict[str, float]:
        """How well it judges these responses."""
        ...


def collate_units(units: Sequence[Sequence[Row]], chosen: Sequence[int], step: int) -> Batch:
    """The batch of a step from the units that are learnt together: single responses, pairs, or whole groups."""
    return collate([row for i in chosen for row in units[i]], step=step)


class Examined:
    """The learner, examined on held-out responses after every so many updates and after the last."""

    def __init__(self, learner: Examinable, held_out: Sequence[Batch], *, every: int | None, steps: int) -> None:
        self._learner = learner
        self._held_out = held_out
        self._every = every
        self._steps = steps

    def update(self, batch: Batch, *, lr_scale: float) -> Report:
        """One step of the learner; its report says how the examination went, when one was due."""
        report = self._learner.update(batch, lr_scale=lr_scale)
        is_due = batch.step == self._steps or (self._every is not None and batch.step % self._every == 0)
        return _WithExamination(report, self.examination()) if is_due and self._held_out else report

    def examination(self) -> dict[str, float]:
        """Flat metrics: shares as `eval/...`, other numbers as `held_out/...`."""
        began = time.perf_counter()
        found = self._learner.examine(self._held_out)
        named = {f"{'eval' if name in _SHARES else 'held_out'}/{name}": value for name, value in found.items()}
        return named | {"time/evaluate": round(time.perf_counter() - began, 6)}

    def stage(self, folder: Path) -> Sequence[Write]:
        """The learner's state: there is no other."""
        return self._learner.stage(folder)

    def load(self, folder: Path) -> None:
        """Restore it."""
        self._learner.load(folder)

    def export(self, folder: Path) -> None:
        """The learner's folder."""
        self._learner.export(folder)


@dataclass(frozen=True, slots=True)
class _WithExamination:
    report: Report
    examination: dict[str, float]

    def metrics(self) -> dict[str, float]:
        return self.report.metrics() | self.examination
