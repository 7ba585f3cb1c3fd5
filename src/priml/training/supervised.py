"""Learning from given responses, whatever the role: a course through the examples, and the run folder it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from priml.batch import Batch
from priml.errors import Interrupted, NonFiniteError
from priml.files import write_json
from priml.trackers.base import Tracker
from priml.training.checkpoints import CheckpointWriter, Saveable, keep_failed_batch, load_checkpoint
from priml.training.interrupt import Interruption
from priml.training.metrics import peak_gib


class Report(Protocol):
    """What an update has to say of itself."""

    def metrics(self) -> dict[str, float]:
        """Flat metrics."""
        ...


class Learner(Saveable, Protocol):
    """A role that learns from given responses."""

    def update(self, batch: Batch, *, lr_scale: float) -> Report:
        """One optimizer step at this share of the learning rate.

        Raises:
            NonFiniteError: before the optimizer moved.
        """
        ...

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder."""
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
        """Optimizer steps of the whole course."""
        return self.epochs * self._steps_per_epoch

    def examples_in(self, step: int) -> list[int]:
        """Indices of the examples of a step."""
        epoch, place = divmod(step - 1, self._steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
        return order[place * self.batch : (place + 1) * self.batch].tolist()

    def lr_scale(self, step: int) -> float:
        """Linear warm-up, then a cosine down to zero after the last step, as a share of the peak learning rate."""
        rising = max(1, round(self.warmup * self.steps))
        if step <= rising:
            return step / rising
        return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (self.steps - rising + 1)))

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch)


def train_supervised(
    learner: Learner, course: DataSchedule, collate: Callable[[Sequence[int], int], Batch], run: SupervisedRun
) -> None:
    """The whole course. `collate` makes the batch of a step from the indices of its examples."""
    for step in run.steps():
        batch = collate(course.examples_in(step), step)
        report = learner.update(batch, lr_scale=course.lr_scale(step))
        run.record(batch, report)


class SupervisedRun:
    """The life of one run folder. Steps count from 1; checkpoint 000500 holds the state after step 500."""

    def __init__(
        self,
        folder: Path,
        *,
        command: str,
        learner: Learner,
        steps: int,
        checkpoint_every: int | None,
        keep_checkpoints: int,
        trackers: Sequence[Tracker],
        interruption: Interruption,
    ) -> None:
        """`command` is what resumes the run when the folder is appended: `priml sft`."""
        self.folder = folder
        self._command = command
        self._learner = learner
        self._steps = steps
        self._checkpoint_every = checkpoint_every
        self._checkpoints = CheckpointWriter(folder, keep=keep_checkpoints, command=command)
        self._trackers = list(trackers)
        self._interruption = interruption
        self._completed = 0
        self._step_began = 0.0
        self._tokens = 0
        self._seconds = 0.0

    @property
    def completed(self) -> int:
        """Finished steps."""
        return self._completed

    def steps(self) -> Iterator[int]:
        """The steps still to do; after the last, its checkpoint is complete.

        Raises:
            Interrupted: the user asked for it; the checkpoint is saved.
            RunError: a checkpoint could not be written.
        """
        while self._completed < self._steps:
            self._checkpoints.check()
            if self._interruption.requested:
                self.checkpoint()
                raise Interrupted(
                    f"interrupted after step {self._completed} of {self._steps}; "
                    f"go on with: {self._command} {self.folder}"
                )
            self._step_began = time.perf_counter()
            yield self._completed + 1
        self._checkpoints.wait()

    def record(self, batch: Batch, report: Report) -> None:
        """A finished step: its metrics, and a checkpoint when one is due, written while the next steps are done."""
        elapsed = time.perf_counter() - self._step_began
        tokens = int(batch.response_lengths_B.sum())
        metrics = {
            "step": batch.step,
            **report.metrics(),
            "tokens/trained": tokens,
            "time/step": round(elapsed, 6),
            "memory/peak_gib": round(peak_gib(), 3),
        }
        self._completed = batch.step
        self._tokens += tokens
        self._seconds += elapsed
        for tracker in self._trackers:
            tracker.log(metrics)
        every = self._checkpoint_every
        if self._completed == self._steps or (every is not None and self._completed % every == 0):
            self._begin_checkpoint()

    def checkpoint(self) -> None:
        """Save the whole state after the last completed step, if there is one, and wait until it is on the disk."""
        if self._completed > 0:
            self._begin_checkpoint()
        self._checkpoints.wait()

    def _begin_checkpoint(self) -> None:
        state = {"step": self._completed, "tokens": self._tokens, "seconds": self._seconds}
        self._checkpoints.begin(self._completed, self._parts, state)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run."""
        state = load_checkpoint(checkpoint, self._parts)
        self._completed, self._tokens, self._seconds = state["step"], state["tokens"], state["seconds"]

    def finish(self, extra: Mapping[str, Any]) -> None:
        """Export the model and write the summary, whose presence says that the run is finished."""
        self._learner.export(self.folder / "model")
        summary = {
            "steps": self._completed,
            "seconds": round(self._seconds, 3),
            "tokens": {"trained": self._tokens},
            **extra,
        }
        write_json(self.folder / "summary.json", summary)

    def save_failure(self, error: NonFiniteError) -> Path | None:
        """Keep the batch that made a non-finite number, for the autopsy."""
        return keep_failed_batch(self.folder, self._completed + 1, error)

    def finishing_checkpoint(self) -> AbstractContextManager[None]:
        """Whatever ends the run inside, the checkpoint in flight gets complete first, unless the user cannot wait."""
        return self._checkpoints.finishing()

    def close(self) -> None:
        """Let go of files and screen."""
        for tracker in self._trackers:
            tracker.close()

    @property
    def _parts(self) -> dict[str, Saveable]:
        return {"model": self._learner}
