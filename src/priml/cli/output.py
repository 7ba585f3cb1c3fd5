"""What commands say, and to whom."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from priml.errors import UsageError


def say(text: str) -> None:
    """For people watching: not part of a command's output."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def print_line(text: str) -> None:
    """The output of a command."""
    print(text, flush=True)  # noqa: T201


def refuse_overrides(folder: Path, overrides: Sequence[str]) -> None:
    """A run that is taken up again keeps its settings."""
    if overrides:
        raise UsageError(f"{folder}: a resumed run keeps its settings; drop {' '.join(overrides)}")
