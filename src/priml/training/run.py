"""A run on disk: its steps, what is recorded of each, its checkpoints, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors.torch import save_file

from priml.errors import Interrupted, NonFiniteError, PausedError
from priml.files import write_json
from priml.learners.base import Trainable
from priml.runs.folder import RunFolder
from priml.trackers.base import Tracker
from priml.training.checkpoints import CheckpointWriter, load_checkpoint
from priml.training.interrupt import Interruption
from priml.training.metrics import peak_gib
from priml.training.watchdog import beat


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen, in steps; None: only at the ends of the run."""

    steps: int
    checkpoint_every: int | None = None
    keep_checkpoints: int = 1
    evaluate_every: int | None = None
    keep_best: bool = False
    max_hours: float | None = None
    """Of this process."""

    def evaluates_after(self, step: int) -> bool:
        return self._is_due(step, self.evaluate_every)

    def checkpoints_after(self, step: int) -> bool:
        return self._is_due(step, self.checkpoint_every)

    def _is_due(self, step: int, every: int | None) -> bool:
        return step == self.steps or (every is not None and step % every == 0)


class Run:
    """The life of one run folder. Steps count from 1; checkpoint 000010 holds the state after step 10."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        command: str,
        roles: Mapping[str, Trainable],
        schedule: Schedule,
        trackers: Sequence[Tracker],
        interruption: Interruption,
    ) -> None:
        """`command` is what resumes the run, as in `priml COMMAND`; `roles` are saved and exported by their names."""
        self.folder = folder
        self._command = command
        self._roles = dict(roles)
        self._schedule = schedule
        self._trackers = list(trackers)
        self._interruption = interruption
        self.checkpoints = CheckpointWriter(folder, keep=schedule.keep_checkpoints, command=command)
        self.completed = 0
        self._began = time.perf_counter()
        self._step_began = 0.0
        self._tokens: dict[str, int] = {}
        self._seconds = 0.0

    def steps(self) -> Iterator[int]:
        """The steps still to do; after the last, its checkpoint is complete.

        Raises:
            Interrupted: the user asked for it; the checkpoint is saved.
            PausedError: its time is up; the checkpoint is saved.
            RunError: a checkpoint could not be written.
        """
        begun = False  # a process does one step at least, or a run of long steps would never end
        while self.completed < self._schedule.steps:
            self.checkpoints.check()
            if self._interruption.requested:
                self.interrupt()
            if begun:
                self._pause_when_due()
            self._step_began, begun = time.perf_counter(), True
            beat(f"step {self.completed + 1}")
            yield self.completed + 1
        self.checkpoints.wait()

    def end_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a finished step, and begin a checkpoint when one is due, written while the next steps are done."""
        elapsed = time.perf_counter() - self._step_began
        beat("record")
        self._count(step, metrics, elapsed)
        self._log({"step": step, **metrics, **measured(elapsed)})
        self._checkpoint_when_due()

    def interrupt(self) -> NoReturn:
        """End at a signal, with the last completed step saved.

        Raises:
            Interrupted: always.
        """
        self.checkpoint()
        raise Interrupted(
            f"interrupted after step {self.completed} of {self._schedule.steps}; "
            f"go on with: priml {self._command} {self.folder}"
        )

    def checkpoint(self) -> None:
        """Save the whole state after the last completed step, if there is one, and wait until it is on the disk."""
        self._interruption.lift_limit()
        if self.completed > 0:
            self.checkpoints.begin(self.completed, self._roles, self._state())
        self.checkpoints.wait()

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run."""
        self._load(load_checkpoint(checkpoint, self._roles))

    def finish(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Export the models and write the summary, whose presence says that the run is finished."""
        self.export()
        summary = {
            "steps": self.completed,
            "seconds": round(self._seconds, 3),
            "tokens": self._tokens,
            **extra,
        }
        write_json(self.folder.summary, summary)
        return summary

    def export(self) -> None:
        """Write `model/` and, if there are any, `prm/` and `critic/` as Hugging Face folders."""
        beat("export")
        for name, role in self._roles.items():
            role.export(self.folder.model if name == "policy" else self.folder.path / name)

    def save_failure(self, error: NonFiniteError) -> Path | None:
        """Write `failed/000012.safetensors`, the batch that made a non-finite number; None if the error has none."""
        if not error.tensors:
            return None
        path = self.folder.failed_batch(self.completed + 1)
        path.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in error.tensors.items()}, path)
        return path

    def _count(self, step: int, metrics: Mapping[str, float], elapsed: float) -> None:
        self.completed = step
        self._seconds += elapsed
        for name, value in metrics.items():
            group, _, kind = name.partition("/")
            if group == "tokens":
                self._tokens[kind] = self._tokens.get(kind, 0) + int(value)

    def _log(self, metrics: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(metrics)

    def _pause_when_due(self) -> None:
        hours, now = self._schedule.max_hours, time.perf_counter()
        last_step = now - self._step_began  # with its records and evaluation
        if hours is None or now + last_step <= self._began + 3600 * hours:
            return
        self.checkpoint()
        raise PausedError(
            f"checkpoint.max_hours: {hours:g} hours are up after step {self.completed} of {self._schedule.steps}; "
            f"go on with: priml {self._command} {self.folder}"
        )

    def _checkpoint_when_due(self) -> None:
        if self._schedule.checkpoints_after(self.completed):
            self.checkpoints.begin(self.completed, self._roles, self._state())

    def _state(self) -> dict[str, Any]:
        return {"step": self.completed, "tokens": self._tokens, "seconds": self._seconds}

    def _load(self, state: Mapping[str, Any]) -> None:
        self.completed, self._tokens, self._seconds = state["step"], dict(state["tokens"]), state["seconds"]


def measured(elapsed: float) -> dict[str, float]:
    """What a step of so many seconds took, as metrics."""
    return {"time/step": round(elapsed, 6), "memory/peak_gib": round(peak_gib(), 3)}
