"""From the settings of trackers to the objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from priml.config import schedule as config
from priml.config.schema import dotted
from priml.errors import UsageError
from priml.plugins import load, naming_failures
from priml.trackers.base import OptionalTracker, Tracker
from priml.trackers.services import MlflowTracker, TensorboardTracker, TrackioTracker, WandbTracker


def build_tracker(settings: config.Tracker, folder: Path, run: Mapping[str, Any]) -> Tracker:
    """The tracker of the run in `folder`. `run`: the settings of the run, which services show beside it.

    Raises:
        UsageError: it cannot be made, its package is missing, or it lacks a method.
    """
    if isinstance(settings, config.CustomTracker):
        return _own(settings, folder)
    name = f"trackers.kind: {settings.kind}"
    with naming_failures(name):
        return OptionalTracker(_service(settings, folder, dotted(run)), name)


def _service(settings: Any, folder: Path, run: Mapping[str, Any]) -> Tracker:
    every = settings.table_every
    match settings:
        case config.TensorboardTracker():
            return TensorboardTracker(folder, table_every=every)
        case config.TrackioTracker(project=project, name=name):
            return TrackioTracker(folder, run, project=project, name=name or folder.name, table_every=every)
        case config.WandbTracker(project=project, name=name, entity=entity):
            title = name or folder.name
            return WandbTracker(folder, run, project=project, name=title, entity=entity, table_every=every)
        case config.MlflowTracker(project=project, name=name, uri=uri):
            title = name or folder.name
            return MlflowTracker(folder, run, uri=uri, project=project, name=title, table_every=every)
        case _:
            raise AssertionError(settings)


def _own(settings: config.CustomTracker, folder: Path) -> Tracker:
    name = f"trackers.function: {settings.function}"
    factory = load(settings.function, setting="trackers.function", takes=("folder",))
    with naming_failures(name):
        tracker = factory(folder)
    for method in ("log", "close"):
        if not callable(getattr(tracker, method, None)):
            raise UsageError(f"{name} returned {type(tracker).__name__} without a method {method!r}; it must have one.")
    return OptionalTracker(tracker, name)
