"""Commands that leave a run folder: make or resume it, and explain how a run ended."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, TypeVar

import torch

from priml.batch import Row
from priml.config.base import Settings
from priml.config.eval import EvalConfig
from priml.config.models import Pretrained
from priml.config.prm import PrmTrainConfig
from priml.config.schedule import Checkpoint
from priml.config.schedule import Tracker as TrackerSettings
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.errors import Interrupted, NonFiniteError, RunError, UsageError
from priml.factories.trackers import build_tracker
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, changes_since, check_unchanged, create, dated, load_settings_to_resume, versions
from priml.runs.owner import owned
from priml.trackers.base import JsonlTracker, Tracker
from priml.trackers.console import ProgressConsole
from priml.training.checkpoints import check_seal
from priml.training.interrupt import Interruption, StepAborted
from priml.training.run import Run, Schedule
from priml.training.supervised import DataSchedule, HeldOut, Learner, train_supervised
from priml.training.watchdog import keep_stacks_in, watched
from priml.types import Tokenizer

logger = logging.getLogger(__name__)

S = TypeVar("S", SftConfig, TrainConfig, PrmTrainConfig, EvalConfig)


def start_or_resume(schema: type[S], given: S | Path, command: str) -> tuple[S, Path | None]:
    """The settings of a run, and what it is resumed from; None: it is new.

    `given`: settings of a new run, the folder of an old one, or a checkpoint in it, after which all is forgotten.

    Raises:
        UsageError: the folder of a new run is taken; or there is no unfinished run of this command to resume.
    """
    if isinstance(given, Path):
        folder = run_folder_from(given)
        return _with_date(load_settings_to_resume(schema, folder, command=command), folder.model), given
    RunFolder(given.run_dir).check_unused(hint=f"go on with: priml {command} {given.run_dir}; or ")
    return _with_date(given, _initial_model(given)), None


def run_folder_from(given: Path) -> RunFolder:
    """The run that a run folder, or one of its checkpoints, belongs to. A run may itself lie in `checkpoints/`."""
    is_checkpoint = given.parent.name == "checkpoints" and not RunFolder(given).config.is_file()
    return RunFolder(given.parent.parent if is_checkpoint else given)


def checkpoint_to_resume(given: Path, folder: RunFolder) -> Path | None:
    """The checkpoint that is meant: the newest, if it is not named; None if the run has saved none.

    Raises:
        UsageError: the one that is named is not there.
    """
    saved = folder.checkpoints()
    if given == folder.path:
        return saved[-1] if saved else None
    if given not in saved:
        names = ", ".join(path.name for path in saved) or "none"
        raise UsageError(f"{given}: found no such checkpoint, need one of those of the run: {names}")
    return given


def _initial_model(cfg: SftConfig | TrainConfig | PrmTrainConfig | EvalConfig) -> str:
    """The model that a new run begins from; nothing, if it makes one."""
    match cfg:
        case TrainConfig():
            return cfg.policy.model
        case SftConfig():
            return cfg.model.model if isinstance(cfg.model, Pretrained) else ""
        case PrmTrainConfig() | EvalConfig():
            return cfg.model or ""


def _with_date(cfg: S, model: str | Path) -> S:
    if isinstance(cfg, TrainConfig):
        data = cfg.data.model_copy(update={"prompt": dated(cfg.data.prompt, model)})
        return cfg.model_copy(update={"data": data})
    return cfg.model_copy(update={"prompt": dated(cfg.prompt, model)})


def watching(checkpoint: Checkpoint, folder: RunFolder, command: str) -> AbstractContextManager[None]:
    """Stop a phase of the command that hangs (`priml.training.watchdog`)."""

    def next_move() -> str:
        return resume_hint(folder, command) if folder.config.exists() else "mend that, and start again"

    hours = checkpoint.hang_hours
    return watched(None if hours is None else 3600 * hours, stop_within_s=checkpoint.stop_within, next_move=next_move)


def resume_hint(folder: RunFolder, command: str) -> str:
    """The next move after a run stopped, and from where that will go on."""
    saved = folder.checkpoints()
    start = f"checkpoint {saved[-1].name}" if saved else "the start: no checkpoint had been saved"
    return f"go on with: priml {command} {folder} (from {start})"


@contextmanager
def output_folder(cfg: Settings, folder: RunFolder, tokenizer: Tokenizer | None, begun_with: Origin) -> Iterator[None]:
    """Describe the run folder of a command that writes its results at the end, inside."""
    with explain_full_disk(folder, lambda: "remove the run folder and start again"), owned(folder):
        folder.check_unused()  # once more: another process may have used it since
        create(folder, cfg, tokenizer, begun_with, threads=torch.get_num_threads())
        yield


@dataclass(frozen=True, slots=True)
class Session:
    """A training command that has its run folder, new or rewound to its newest checkpoint."""

    folder: RunFolder
    command: str
    seed: int
    checkpoint: Path | None
    """Where the run goes on; None: at the start."""
    trackers: tuple[Tracker, ...]
    console: ProgressConsole
    """One of the trackers."""
    interruption: Interruption

    @property
    def completed(self) -> int:
        return int(self.checkpoint.name) if self.checkpoint else 0

    def complete(
        self, run: Run, train: Callable[[], None], extra: Callable[[], Mapping[str, Any]] = dict
    ) -> dict[str, Any]:
        """Resume the run, do the rest of its steps, write its summary with what `extra` returns; returns the summary.

        A checkpoint that is being written gets complete, whatever ends the run.

        Raises:
            RunError: a loss or gradient was not finite; the batch is saved.
            Interrupted: after Ctrl-C; a second one leaves no time for a checkpoint.
        """
        try:
            with run.checkpoints.finishing(), _explaining_numbers(run):
                if self.checkpoint:
                    run.resume(self.checkpoint)
                with self.interruption:
                    try:
                        train()
                    except StepAborted:
                        run.interrupt()
                return run.finish({**extra(), "seed": self.seed, "versions": versions()})
        except KeyboardInterrupt:
            raise Interrupted(f"stopped at once, unsaved; go on with: priml {self.command} {self.folder}") from None

    def complete_supervised(
        self,
        learner: Learner,
        schedule: DataSchedule,
        units: Sequence[Sequence[Row]],
        checkpoint: Checkpoint,
        held_out: HeldOut | None = None,
        extra: Callable[[], Mapping[str, Any]] = dict,
    ) -> dict[str, Any]:
        """`complete` for one learner and given responses (`train_supervised`)."""
        run = Run(
            self.folder,
            command=self.command,
            roles={"model": learner},
            schedule=Schedule(schedule.steps, checkpoint.every, checkpoint.keep, max_hours=checkpoint.max_hours),
            trackers=self.trackers,
            interruption=self.interruption,
        )
        return self.complete(run, lambda: train_supervised(learner, schedule, units, run, held_out), extra)


@contextmanager
def training_session(
    cfg: SftConfig | TrainConfig | PrmTrainConfig,
    folder: RunFolder,
    tokenizer: Tokenizer,
    begun_with: Origin,
    *,
    resume: Path | None,
    steps: int,
    shown: Mapping[str, str],
    custom: Sequence[TrackerSettings] = (),
) -> Iterator[Session]:
    """Make the run folder, or check and rewind it. `shown`: metrics beside the progress bar, with their
    labels. `custom`: the users' trackers.

    Raises:
        UsageError: another process has the folder; or data, weights or the checkpoint of a resumed run have changed.
        RunError: the disk is full.
    """
    command = begun_with.command
    with explain_full_disk(folder, lambda: resume_hint(folder, command)), owned(folder):
        # Once more what `start_or_resume` found: another process may have used the folder since.
        if resume:
            load_settings_to_resume(type(cfg), folder, command=command)
            check_unchanged(folder, begun_with)
            if changes := changes_since(folder, threads=torch.get_num_threads()):
                logger.info(f"not as when the run began, so results may differ: {'; '.join(changes)}")
        else:
            folder.check_unused()
            create(folder, cfg, tokenizer, begun_with, threads=torch.get_num_threads())
        keep_stacks_in(folder.path)
        checkpoint = checkpoint_to_resume(resume, folder) if resume else None
        if checkpoint:
            check_seal(checkpoint, folder, command=command)
        completed = int(checkpoint.name) if checkpoint else 0
        folder.rewind(completed)
        if resume:
            logger.info(f"resuming after step {completed} of {steps}")
        console = ProgressConsole(command, total=steps, done=completed, shown=shown)
        interruption = Interruption("ending this step, then saving a checkpoint.", within_s=cfg.checkpoint.stop_within)
        theirs = [build_tracker(tracker, folder.path, cfg.model_dump(mode="json")) for tracker in custom]
        trackers = (JsonlTracker(folder.metrics), console, *theirs)
        with ExitStack() as stack:
            for tracker in trackers:
                stack.callback(tracker.close)
            yield Session(folder, command, begun_with.seed, checkpoint, trackers, console, interruption)


def busy_machine() -> str:
    """A remark on a machine that others use, too; empty on a quiet one."""
    load, cores = (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0), os.cpu_count() or 1
    if load < 1.5 * cores:
        return ""
    return f"; this machine is busy (load {load:.1f} on {cores} cores), so steps take longer than on a quiet one"


@contextmanager
def explain_full_disk(folder: RunFolder, next_move: Callable[[], str]) -> Iterator[None]:
    """A full disk is an ordinary way for a run to stop: say so, and how to go on.

    `next_move` is asked when it happens.

    Raises:
        RunError: in place of the error of whatever was being written.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises no narrower class; everything else goes on its way unchanged
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(folder.path).free / 2**30
        raise RunError(
            f"{folder}: no space left on the disk ({free:.2f} GiB free); make room, then {next_move()}"
        ) from error


@contextmanager
def _explaining_numbers(run: Run) -> Iterator[None]:
    try:
        yield
    except NonFiniteError as error:
        saved = run.save_failure(error)
        raise RunError(
            f"step {run.completed + 1}: {error}; stopped before the optimizer moved"
            + (f"; the batch is in {saved}" if saved else "")
            + "; lower the learning rate, or look at the batch"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Also for the libraries that report the system's error in text only."""
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return True
    return bool(re.search(r"os error 28\b|code: 28\b|No space left on device", str(error)))
