"""What the actors of samplers and graders have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from priml.errors import PrimlError

T = TypeVar("T")

TRIES = 3
"""How many actors may be lost over a piece of work before the work is thought to be the cause."""


def work_in(cwd: str) -> None:
    """Work in the driver's folder, if it exists on this node: settings may hold relative paths."""
    if Path(cwd).is_dir():
        os.chdir(cwd)


class Built(Generic[T]):
    """What an actor works with, or the error of building it.

    Of an error in an actor's constructor Ray delivers the text alone, so the error is kept for the first call.
    """

    def __init__(self, build: Callable[[], T]) -> None:
        self._error: PrimlError | None = None
        try:
            self._value = build()
        except PrimlError as error:
            self._error = error

    def get(self) -> T:
        """The value. Raises the error of building it."""
        if self._error is not None:
            raise self._error
        return self._value
