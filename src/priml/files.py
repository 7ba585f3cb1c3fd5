"""Text files that are whole or absent, whenever the process dies."""

from __future__ import annotations

import json
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_json(path: Path, value: object) -> None:
    """`write_whole` of indented JSON. NaN is refused."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
