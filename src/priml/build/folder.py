"""The run folder of a command: claimed once, described, and checked when it is taken up again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import priml
from priml.build.roles import Place
from priml.config.base import Settings
from priml.config.load import dump_config, parse_config
from priml.errors import RunError, UsageError
from priml.telemetry.files import write_json, write_whole

_PLACES = {"run_dir", "path", "model", "init", "function"}
"""Keys of settings that may hold a path."""


def check_unclaimed(folder: Path, *, hint: str = "") -> None:
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


def claim(
    cfg: Settings, folder: Path, place: Place, *, seed: int, data: Mapping[str, str], weights: Mapping[str, str]
) -> None:
    """Write `manifest.json` and `config.yaml`, once everything that the settings name was found to be in order.

    `data` and `weights` are sha256 by name.
    """
    on_gpu = place.device.type == "cuda"
    device = torch.cuda.get_device_name(place.device) if on_gpu else platform.processor() or "cpu"
    manifest = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": versions(),
        "host": {"name": platform.node(), "system": platform.platform(), "threads": torch.get_num_threads()},
        "device": {"kind": place.device.type, "name": device, "precision": place.precision},
        "seed": seed,
        "sha256": {"data": data, "initial_weights": weights},
    }
    write_json(folder / "manifest.json", manifest)
    resolved = _with_absolute_paths(cfg.model_dump(mode="json"))
    write_whole(folder / "config.yaml", dump_config(parse_config(type(cfg), resolved, where="resolved settings")))


def check_manifest(folder: Path, *, data: Mapping[str, str], weights: Mapping[str, str]) -> None:
    """A resumed run must start from the same data and weights, or its rewards would jump.

    Raises:
        UsageError: something has changed, or there is no manifest to tell.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{folder}: manifest.json is missing, so the run cannot be resumed safely; start a new run")
    recorded = json.loads(path.read_text(encoding="utf-8"))["sha256"]
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
    for name in ("torch", "transformers", "safetensors", "numpy", "pydantic", "math-verify", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def explaining_full_disk(folder: Path, next_move: Callable[[], str]) -> Iterator[None]:
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


def is_disk_full(error: BaseException) -> bool:
    """Also for the libraries that report the system's error in text only."""
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return True
    return bool(re.search(r"os error 28\b|code: 28\b|No space left on device", str(error)))


def _with_absolute_paths(tree: Any) -> Any:
    """The same settings, usable from any folder: relative paths that lead to something are written out."""
    if not isinstance(tree, dict):
        return tree
    return {key: _absolute(value) if key in _PLACES else _with_absolute_paths(value) for key, value in tree.items()}


def _absolute(value: Any) -> Any:
    if not isinstance(value, str):
        return _with_absolute_paths(value)
    path, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    return os.path.abspath(path) + colon + function if Path(path).exists() else value
