"""Extract the program from a response: its last complete fenced code block."""

import re

MAX_PROGRAM = 100_000
"""Longest program, in characters, that is run at all."""

_PYTHON = frozenset({"python", "python3", "py", "py3"})
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)


def extract_program(response: str, *, bare: bool = False) -> str | None:
    """Return the program as it was written, or None without one.

    Of the complete fenced blocks, it is the last that is labelled as Python; if there is none, the last one without a
    label. Only what follows the thinking part is read (after the last `</think>`, before a `<think>` that was never
    closed). With `bare`, a response without any fence is a program as a whole.
    """
    text = response.rpartition("</think>")[2].partition("<think>")[0]
    found: dict[str, str] = {}  # by label
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[2][0] == opening[2][0] and len(fence[2]) >= len(opening[2]) and not fence[3]:
            lines = text[opening.end() + 1 : fence.start()].splitlines(keepends=True)
            label = opening[3].lower()
            # A block within a list is indented like its fence.
            found["python" if label in _PYTHON else label] = "".join(line.removeprefix(opening[1]) for line in lines)
            opening = None
    program = found.get("python", found.get("", ""))
    if not found.keys() & {"python", ""} and bare and "```" not in text:
        program = text
    return program if program.strip() else None


def extract_like_authors(response: str) -> str | None:
    """Return what the authors' program runs: the text after the last "```python" up to the next fence, else all."""
    text = response.rpartition("```python")[2].partition("```")[0]
    return text if text.strip() else None
