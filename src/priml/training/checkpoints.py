"""The state of a run on disk: checkpoints, complete or absent, each with a seal that says what belongs in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from priml.errors import Interrupted, PrimlError, RankLostError, RunError, UsageError
from priml.files import put_in_place, write_json
from priml.learners.base import Trainable
from priml.runs.folder import RunFolder
from priml.types import Write

_SEAL = "seal.json"


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A checkpoint that is being written."""

    path: Path
    done: Future[None]


class CheckpointWriter:
    """Copies the state to host memory between two steps, and writes it while the next steps are done.

    At most one checkpoint is in flight. Its folder gets its name when it is on the disk. A crash before that leaves the
    previous checkpoint; `RunFolder.rewind` then removes the records of later steps.
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
        """Wait for the previous checkpoint, and copy the state to host memory. The rest is done in the background:
        `checkpoints/000012` is written aside and renamed, then all but the newest are deleted.

        Raises:
            RunError: the previous checkpoint could not be written.
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
        """As `wait`, if the checkpoint in flight has ended."""
        if self._in_flight is not None and self._in_flight.done.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint in flight, if any, is complete.

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
        """When an error ends the run inside, wait for the checkpoint in flight. A second Ctrl-C abandons it."""
        try:
            try:
                yield
            except Exception as error:  # of any kind, and it goes on its way
                try:
                    self.wait()
                except RunError as another:
                    error.add_note(str(another))
                raise
        except KeyboardInterrupt:
            self._abandoned.set()
            raise

    def _write(self, aside: Path, final: Path, writes: list[Write], state: str) -> None:
        with _removing_if_stopped(aside):
            while writes:
                if self._abandoned.is_set():
                    raise Interrupted(f"{final}: the run was stopped before this checkpoint was written")
                writes.pop(0)()  # its copy is let go of
            (aside / "state.json").write_text(state, encoding="utf-8")
            write_json(aside / _SEAL, {"run": _identity(self._folder), "files": _digests(aside)})
            put_in_place(aside, final)
        for old in self._folder.checkpoints()[: -self._keep]:
            # Not under its name while it goes: killed in between, it would be a checkpoint that lacks files.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.partial")))


def load_checkpoint(checkpoint: Path, parts: Mapping[str, Trainable]) -> dict[str, Any]:
    """Restore the parts; returns the state that was saved beside them.

    Raises:
        UsageError: the checkpoint holds other parts.
    """
    found = {path.name for path in checkpoint.iterdir() if path.is_dir()}
    if found != set(parts):
        raise UsageError(
            f"{checkpoint}: found the state of {', '.join(sorted(found))}, need that of {', '.join(sorted(parts))}; "
            "restore the settings that the run began with"
        )
    for name, part in parts.items():
        part.load(checkpoint / name)
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def check_seal(checkpoint: Path, folder: RunFolder, *, command: str) -> None:
    """Refuse a checkpoint that is not, byte for byte, what this run wrote. Reads all of it.

    Raises:
        UsageError: a file has changed, is missing or is new; or the checkpoint is of another run.
    """
    older = [path.name for path in folder.checkpoints() if int(path.name) < int(checkpoint.name)]
    hint = f"go on from an older one: priml {command} {folder} from={older[-1]}" if older else "start a new run"
    try:
        seal = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
        run, files = seal["run"], seal["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{checkpoint}: found no {_SEAL} that can be read ({error}), need that of the checkpoint; "
            f"restore it, or {hint}"
        ) from None
    if run != _identity(folder):
        raise UsageError(f"{checkpoint}: found a checkpoint of another run, need one of this; restore it, or {hint}")
    found = _digests(checkpoint)
    for name in sorted({*found, *files}):
        if found.get(name) != files.get(name):
            is_, was = (str(digests.get(name, "absent"))[:12] for digests in (found, files))
            raise UsageError(
                f"{checkpoint / name}: found sha256 {is_}, need {was}: the checkpoint has changed since it was "
                f"written; restore it, or {hint}"
            )


def _identity(folder: RunFolder) -> str:
    """Of a run: its manifest is written once."""
    return hashlib.sha256(folder.manifest.read_bytes()).hexdigest() if folder.manifest.is_file() else ""


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of each file but the seal."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SEAL)
    with ThreadPoolExecutor(max_workers=4) as threads:  # files of many gigabytes; hashing lets go of the lock
        digests = threads.map(_digest, paths)
        return {str(path.relative_to(folder)): digest for path, digest in zip(paths, digests, strict=True)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _removing_if_stopped(aside: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # whatever stopped it, a half-written checkpoint only takes the space
        shutil.rmtree(aside, ignore_errors=True)
        raise
