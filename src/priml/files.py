"""Files that are whole or absent, and lines that are on disk, whenever the process dies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_json(path: Path, value: object) -> None:
    """`write_whole` of indented JSON. NaN is refused."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records as lines of JSON, on disk when this returns. NaN and infinity are refused with `ValueError`."""
    lines = [json.dumps(dict(record), allow_nan=False) + "\n" for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
