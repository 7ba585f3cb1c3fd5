"""Metrics as JSON lines, appended and flushed, so that a killed run keeps every finished step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonlTracker:
    """One JSON object per line. Opened for appending; on resume, lines after step `completed` are dropped first."""

    def __init__(self, path: Path, *, completed: int = 0) -> None:
        if path.exists():
            path.write_text("".join(_up_to(path, completed)), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write one line."""
        assert all(not isinstance(v, float) or math.isfinite(v) for v in metrics.values()), f"not finite: {metrics}"
        self._file.write(json.dumps(dict(metrics), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _up_to(path: Path, step: int) -> list[str]:
    """Whole lines of finished steps: what was written after the checkpoint will be written again."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):  # a line cut off when the process died
            continue
    return kept
