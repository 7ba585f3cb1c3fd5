"""Metrics as JSON lines, written step by step, so that a killed run keeps every finished step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from priml.files import append_lines


class JsonlTracker:
    """Appends a line per call. No file stays open: a full disk is met in `log`, and not a second time in `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinity are refused with `ValueError`."""
        append_lines(self._path, [metrics])

    def close(self) -> None:
        """Nothing is held."""
