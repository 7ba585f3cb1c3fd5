"""What a run folder says of itself at a glance: state, progress, accuracy. Reads a few small files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from priml.errors import UsageError
from priml.runs.folder import RunFolder
from priml.runs.owner import is_owned

_DEEPEST = 4
"""Levels below the folder that is searched; a run may lie in another, as those of the quickstart do."""
_WITHIN = ("checkpoints", "rollouts", "evaluations", "model", "prm", "critic", "best", "tokenizer")
"""Folders of a run that hold no runs."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One run."""

    folder: RunFolder
    command: str
    """As in `priml COMMAND`."""
    created: str
    state: str
    """`finished`, `running` or `stopped`."""
    step: int
    """The last on record; -1 without any."""
    steps: int | None
    """How many there are to do; None where the settings do not count them."""
    before: Mapping[str, float] | None = None
    """Greedy accuracy on held-out problems, with `low` and `high`."""
    after: Mapping[str, float] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Those of the last step."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def next_command(self) -> str:
        """What goes on with it, or shows it."""
        return f"priml {self.command} {self.folder}" if self.state == "stopped" else f"priml report {self.folder}"

    def asdict(self) -> dict[str, Any]:
        """For JSON; without settings and metrics."""
        return {
            "run": str(self.folder),
            "command": self.command,
            "created": self.created,
            "state": self.state,
            "step": max(self.step, 0),
            "steps": self.steps,
            "before": self.before,
            "after": self.after,
        }


def find_runs(below: Path) -> Iterator[RunFolder]:
    """The run folders in a folder, itself included, by name.

    Raises:
        UsageError: there is no such folder.
    """
    if not below.is_dir():
        raise UsageError(f"{below}: found no folder, need one with runs in it")
    yield from _find(below, _DEEPEST)


def _find(here: Path, levels: int) -> Iterator[RunFolder]:
    is_run = RunFolder(here).manifest.is_file()
    if is_run:
        yield RunFolder(here)
    if levels:
        for path in sorted(here.iterdir()):
            holds_none = path.name[0] == "." or (is_run and path.name in _WITHIN)
            if path.is_dir() and not path.is_symlink() and not holds_none:
                yield from _find(path, levels - 1)


def read_overview(folder: RunFolder) -> Overview:
    """Read one run, finished or not.

    Raises:
        UsageError: the folder is none of a run, or a file in it is damaged.
    """
    if not folder.manifest.is_file():
        raise UsageError(f"{folder}: not a run folder (no manifest.json in it)")
    try:
        manifest = json.loads(folder.manifest.read_text(encoding="utf-8"))
        settings = yaml.safe_load(folder.config.read_text(encoding="utf-8")) or {}
        summary = json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.is_file() else None
        metrics = _last_metrics(folder)
        before, after = _held_out(folder)
        command, created = manifest["kind"], manifest["created"]
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise UsageError(f"{folder}: a file of this run cannot be read ({type(error).__name__}: {error})") from None
    is_done = summary is not None or folder.results.is_file() or folder.scores.is_file() or folder.ranking.is_file()
    state = "running" if is_owned(folder) else "finished" if is_done else "stopped"
    step = metrics.get("step", -1)
    steps = settings.get("steps") if command == "train" else summary and summary.get("steps")
    return Overview(folder, command, created, state, step, steps, before, after, metrics, settings)


def _last_metrics(folder: RunFolder) -> dict[str, Any]:
    """Those of the last whole line: a running process may be writing one."""
    if not folder.metrics.is_file():
        return {}
    text = folder.metrics.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1]) if lines else {}


def _held_out(folder: RunFolder) -> tuple[Mapping[str, float] | None, Mapping[str, float] | None]:
    """Of the first and the last evaluation; the second is None with only one."""
    found = [json.loads(path.read_text(encoding="utf-8"))["greedy"] for path in folder.held_out_files()]
    return (found[0] if found else None), (found[-1] if found[1:] else None)
