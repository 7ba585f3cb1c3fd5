"""The files of a run, however damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from priml.errors import UsageError
from priml.runs.folder import RunFolder
from priml.runs.manifest import check_format


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of one role in one step."""

    role: str
    phase: str
    start: float
    """Seconds since the first span of the step."""
    end: float


OFFLINE_PRM = "prm train"
"""How the manifest names a run of `priml prm train`."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The files of a run folder. What is missing is empty here and named in `notes`."""

    folder: RunFolder
    config: Mapping[str, Any]
    """The resolved settings."""
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    """Empty while the run is unfinished."""
    metrics: tuple[Mapping[str, float], ...]
    """One per step, steps rising (0 is the evaluation before training); finite numbers only."""
    spans: Mapping[int, tuple[Span, ...]]
    """By step, steps rising."""
    rollouts: tuple[Path, ...]
    """The rollout files, steps rising."""
    notes: tuple[str, ...]
    """What is missing or damaged, in sentences for the reader."""

    @property
    def steps_done(self) -> int:
        """The last training step on record; 0 when there is none."""
        return max((int(m["step"]) for m in self.metrics), default=0)

    @property
    def is_outcome_only(self) -> bool:
        """The settings say that no process reward model was trained."""
        return "prm" in self.config and self.config["prm"] is None

    @property
    def custom_prm(self) -> str | None:
        """The user's function that pays the process rewards; None where it is a model, or nothing."""
        prm = self.config.get("prm")
        return prm.get("function") if isinstance(prm, Mapping) else None

    @property
    def is_supervised(self) -> bool:
        """A run on given responses: nothing is sampled, so there are no rollouts, no phases and no accuracy."""
        return self.manifest.get("kind") in ("sft", OFFLINE_PRM)

    def column(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever a metric was recorded."""
        return [(int(m["step"]), m[key]) for m in self.metrics if key in m]


def read_run(run_dir: Path) -> RunLog:
    """Read a run folder, finished or not.

    Raises:
        UsageError: there is no such folder, nothing of a run in it, or a run of an older priml.
    """
    need = "give the run_dir of a `priml train`, `priml sft` or `priml prm train` run"
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: no such folder; {need}")
    folder = RunFolder(run_dir)
    files = (folder.config, folder.manifest, folder.metrics, folder.spans, folder.rollouts(0).parent, folder.summary)
    if not any(path.exists() for path in files):
        raise UsageError(f"{run_dir}: not a run folder: found none of {', '.join(p.name for p in files)}; {need}")
    notes: list[str] = []
    config = _read_mapping(folder.config, notes, absent="the settings of the run are unknown")
    manifest = _read_mapping(folder.manifest, notes, absent="versions and machine are unknown")
    if manifest:
        check_format(folder, manifest)
    summary = _read_mapping(folder.summary, notes, absent="the run is still going, or ended early")
    metrics = _read_metrics(folder.metrics, notes)
    log = RunLog(folder, config, manifest, summary, metrics, spans={}, rollouts=(), notes=())
    if log.is_supervised:
        return replace(log, notes=tuple(notes))
    spans = _read_spans(folder.spans, notes)
    rollouts = tuple(folder.rollout_files())
    if not rollouts:
        notes.append("There are no rollout files: no responses to show.")
    return replace(log, spans=spans, rollouts=rollouts, notes=tuple(notes))


def _read_mapping(path: Path, notes: list[str], *, absent: str) -> Mapping[str, Any]:
    if not path.exists():
        notes.append(f"There is no {path.name}: {absent}.")
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} cannot be read: {absent}.")
    return {}


def _read_metrics(path: Path, notes: list[str]) -> tuple[Mapping[str, float], ...]:
    by_step: dict[int, dict[str, float]] = {}
    for row in _json_lines(path, notes, absent="there are no training curves"):
        step = row.get("step")
        if _is_number(step):
            # A resumed run may write a step again: the later line counts.
            by_step[int(step)] = finite_numbers(row)
    return tuple(by_step[step] for step in sorted(by_step))


def _read_spans(path: Path, notes: list[str]) -> Mapping[int, tuple[Span, ...]]:
    by_step: dict[int, list[Span]] = {}
    last_step, last_end = -1, -math.inf
    for row in _json_lines(path, notes, absent="there is no waterfall"):
        step, start, end = row.get("step"), row.get("start"), row.get("end")
        if not (_is_number(step) and _is_number(start) and _is_number(end)):
            continue
        # Spans are written as they end. A step that comes back, or a clock that jumps back, is a resumed run
        # writing the step again: the later attempt counts.
        if step not in by_step or step != last_step or end < last_end:
            by_step[int(step)] = []
        by_step[int(step)].append(Span(str(row.get("role", "")), str(row.get("phase", "")), start, end))
        last_step, last_end = step, end
    found: dict[int, tuple[Span, ...]] = {}
    for step in sorted(by_step):
        origin = min(span.start for span in by_step[step])
        moved = [replace(s, start=s.start - origin, end=s.end - origin) for s in by_step[step]]
        found[step] = tuple(sorted(moved, key=lambda s: (s.start, -s.end)))
    return found


def _json_lines(path: Path, notes: list[str], *, absent: str) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        notes.append(f"There is no {path.name}: {absent}.")
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            yield row
        elif line.strip():
            damaged.append(number)
    if damaged == [len(lines)]:
        notes.append(f"The last line of {path.name} is incomplete: the run is being written, or was cut off.")
    elif damaged:
        notes.append(f"{path.name}: {len(damaged)} unreadable lines were skipped, the first is line {damaged[0]}.")


def finite_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """What of a record of metrics can be drawn."""
    return {key: value for key, value in record.items() if _is_number(value)}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
