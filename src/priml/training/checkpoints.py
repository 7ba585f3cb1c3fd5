"""The state of a run on disk: checkpoints, complete or absent, and failed batches."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from priml.errors import Interrupted, NonFiniteError, PrimlError, RankLostError, RunError
from priml.learners.base import Trainable
from priml.runs.folder import RunFolder
from priml.types import Write


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A checkpoint that is being written."""

    path: Path
    done: Future[None]


class CheckpointWriter:
    """The way of a run's checkpoints to the disk: copied aside between two steps, written beside those that follow.

    At most one is in flight. Its folder gets its name when all of it is on the disk; a crash before that leaves the
    checkpoint before it, and steps on record that `RunFolder.rewind` takes back.
    """

    def __init__(self, folder: RunFolder, *, keep: int, command: str) -> None:
        """`keep` of the newest stay; `command`, as in `priml COMMAND`, is what resumes the run."""
        self._folder = folder
        self._keep = keep
        self._command = command
        # Not a daemon: one that comes back from a library as the interpreter ends would end it by a signal.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: _InFlight | None = None
        self._abandoned = threading.Event()

    def begin(self, step: int, parts: Mapping[str, Trainable], state: Mapping[str, Any]) -> None:
        """Copy the state to host memory, once the checkpoint before it is complete; the rest is done in the background:
        `checkpoints/000012` is written aside and renamed, then all but the newest are deleted.

        Raises:
            RunError: the checkpoint before it could not be written.
        """
        self.wait()
        final = self._folder.checkpoint(step)
        if final.exists():
            return
        aside = final.with_name(f".{final.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        with _removing_if_stopped(aside):
            for name in parts:
                (aside / name).mkdir(parents=True)
            writes = [write for name, part in parts.items() for write in part.stage(aside / name)]
        self._in_flight = _InFlight(final, self._thread.submit(self._write, aside, final, writes, json.dumps(state)))

    def check(self) -> None:
        """Come to know of a failure, if there has been one, without waiting.

        Raises:
            RunError: the last checkpoint could not be written.
        """
        if self._in_flight is not None and self._in_flight.done.done():
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint in flight, if any, is complete.

        Raises:
            RunError: it could not be written.
        """
        if self._in_flight is None:
            return
        path, error = self._in_flight.path, self._in_flight.done.exception()
        self._in_flight = None
        if isinstance(error, RankLostError):
            raise error  # the run may begin again by itself
        if error is not None:
            cause = str(error) if isinstance(error, PrimlError) else f"{type(error).__name__}: {error}"
            raise RunError(
                f"{path}: this checkpoint could not be written ({cause}); see to the disk, then go on with: "
                f"priml {self._command} {self._folder}"
            ) from error

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Whatever ends the run inside, the checkpoint in flight gets complete first, unless the user cannot wait."""
        try:
            with self._waiting_after_failure():
                yield
        except KeyboardInterrupt:
            self._abandoned.set()
            raise

    @contextmanager
    def _waiting_after_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind, and it goes on its way
            try:
                self.wait()
            except RunError as another:
                error.add_note(str(another))
            raise

    def _write(self, aside: Path, final: Path, writes: list[Write], state: str) -> None:
        with _removing_if_stopped(aside):
            while writes:
                if self._abandoned.is_set():
                    raise Interrupted(f"{final}: the run was stopped before this checkpoint was written")
                writes.pop(0)()  # its copy is let go of
            (aside / "state.json").write_text(state, encoding="utf-8")
            _flush(aside)
            aside.rename(final)
        for old in self._folder.checkpoints()[: -self._keep]:
            shutil.rmtree(old)


def load_checkpoint(checkpoint: Path, parts: Mapping[str, Trainable]) -> dict[str, Any]:
    """Restore the parts; returns the state that was saved beside them."""
    for name, part in parts.items():
        part.load(checkpoint / name)
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def save_failed_batch(folder: RunFolder, step: int, error: NonFiniteError) -> Path | None:
    """Write `failed/000012.safetensors`, the batch that made a non-finite number; None when the error brought none."""
    if not error.tensors:
        return None
    path = folder.failed_batch(step)
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in error.tensors.items()}, path)
    return path


@contextmanager
def _removing_if_stopped(aside: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # whatever stopped it, a half-written checkpoint only takes the space
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _flush(folder: Path) -> None:
    """Onto the disk before the rename, or a power cut could leave a complete name on empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
