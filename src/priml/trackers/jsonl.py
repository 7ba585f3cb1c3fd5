"""Records as JSON lines, written step by step, so that a killed run keeps every finished step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from priml.files import write_whole


class JsonlTracker:
    """Appends a line per call. No file stays open: a full disk is met in `log`, and not a second time in `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line. NaN and infinity are refused with `ValueError`."""
        append_lines(self._path, [metrics])

    def close(self) -> None:
        """Nothing is held."""


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records, on disk when this returns."""
    lines = [json.dumps(dict(record), allow_nan=False) + "\n" for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def keep_steps(path: Path, last: int) -> None:
    """Drop the records of steps after `last`, and a line cut off when the process died."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_whole(path, "".join(line for line in lines if _step_in(line) <= last))


def _step_in(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")
