"""The output of commands, and their messages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from priml.errors import UsageError


class _StderrHandler(logging.Handler):
    """Prints to what `sys.stderr` is at that moment: a progress bar replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def show_messages() -> None:
    """Write the messages of the `priml` loggers to stderr, one line each: they are no part of a command's output."""
    logger = logging.getLogger("priml")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_StderrHandler())


def print_line(text: str) -> None:
    """The output of a command."""
    print(text, flush=True)  # noqa: T201


def refuse_overrides(folder: Path, overrides: Sequence[str]) -> None:
    """A run that is taken up again keeps its settings."""
    if overrides:
        raise UsageError(f"{folder}: a resumed run keeps its settings; drop {' '.join(overrides)}")
