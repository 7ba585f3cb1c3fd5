"""Where the metrics of a run go: the interface, the file, and a guard around whatever may fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from priml.errors import UsageError
from priml.files import append_lines
from priml.plugins import naming_failures

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A sink for the metrics of a run."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics: flat, slash-separated, `step` included; nothing that is NaN."""
        ...

    def close(self) -> None: ...


class JsonlTracker:
    """Appends a line per step, so that a killed run keeps every finished one.

    No file stays open: a full disk raises in `log`, and not a second time in `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinity are refused with `ValueError`."""
        append_lines(self._path, [metrics])

    def close(self) -> None: ...


class OptionalTracker:
    """A tracker that never stops the run: when it fails, that is reported once, and it gets nothing more."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        """`name` is what messages call it."""
        self._tracker: Tracker | None = tracker
        self._name = name

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Pass one step on."""
        self._try(lambda tracker: tracker.log(metrics))

    def close(self) -> None:
        """Pass it on."""
        self._try(lambda tracker: tracker.close())

    def _try(self, work: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            with naming_failures(self._name):
                work(self._tracker)
        except UsageError as error:
            self._tracker = None
            logger.warning(f"{error}; the run goes on without this tracker, and metrics.jsonl has every step")
