"""What a command prints: as it looks to a terminal, and when nobody reads it any more."""

from __future__ import annotations

import os
from typing import Any, TextIO


def plain(text: object) -> str:
    """The text with each character that a terminal obeys, or cannot show, as its code: `\\x1b` for ESC.

    Names and reasons in messages come from files and models. Line breaks and tabs stay.
    """
    lines = str(text).split("\n")
    return "\n".join("".join(c if c.isprintable() or c == "\t" else _code(c) for c in line) for line in lines)


def _code(character: str) -> str:
    return character.encode("unicode_escape").decode()


class LenientStream:
    """A text stream that is let go of when it cannot be written to: from then on, nothing is printed.

    For commands whose results are files. Their screen is for people, so a closed pipe or a log on a full disk ends no
    run.
    """

    def __init__(self, stream: TextIO, *, forgives: type[OSError]) -> None:
        """`forgives`: the errors of writing that are let pass."""
        self._stream = stream
        self._forgives = forgives

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        try:
            return self._stream.write(text)
        except self._forgives:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        try:
            self._stream.flush()
        except self._forgives:
            self._let_go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _let_go(self) -> None:
        """What waits in buffers, here and in the interpreter, goes nowhere."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
