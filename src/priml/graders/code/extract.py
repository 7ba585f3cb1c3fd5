"""The program in a response: its last complete fenced code block."""

from __future__ import annotations

import re

MAX_PROGRAM = 100_000
"""Longest program, in characters, that is run at all."""

_PYTHON = frozenset({"python", "python3", "py", "py3"})
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)


def extract_program(response: str, *, bare: bool = False) -> str | None:
    """The program as it was written, or None without one.

    Of the complete fenced blocks, the last that is labelled as Python; without such, the last one without a label. Only
    what follows the thinking part is read (after the last `</think>`, before a `<think>` that was never closed). With
    `bare`, a response without any fence is a program as a whole.
    """
    text = response.rpartition("</think>")[2].partition("<think>")[0]
    labelled: str | None = None
    plain: str | None = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif _closes(fence, opening):
            block = _without_indent(text[opening.end() + 1 : fence.start()], opening[1])
            label = opening[3].lower()
            if label in _PYTHON:
                labelled = block
            elif not label:
                plain = block
            opening = None
    found = labelled if labelled is not None else plain
    if found is None and bare and "```" not in text:
        found = text
    return found if found is not None and found.strip() else None


def extract_like_authors(response: str) -> str | None:
    """What the authors' program runs: the text after the last "```python" up to the next fence, else all of it."""
    text = response.rpartition("```python")[2].partition("```")[0]
    return text if text.strip() else None


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    return fence[2][0] == opening[2][0] and len(fence[2]) >= len(opening[2]) and not fence[3]


def _without_indent(block: str, indent: str) -> str:
    """A block within a list is indented like its fence."""
    if not indent:
        return block
    return "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True))
