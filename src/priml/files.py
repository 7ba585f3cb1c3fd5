"""Files that are whole or absent, and lines that are on disk, whenever the process dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a reader never sees half a file, nor does anybody after a power cut."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    put_in_place(aside, path)


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file or folder its name when all that it holds is on the disk, and put the name there, too."""
    for part in [aside, *aside.rglob("*")]:
        flush(part)
    aside.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Onto the disk: the bytes of a file, the names in a folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, value: object) -> None:
    """`write_whole` of indented JSON. NaN is refused."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records as lines of JSON, on disk when this returns. NaN and infinity are refused with `ValueError`."""
    lines = [json.dumps(dict(record), allow_nan=False) + "\n" for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
