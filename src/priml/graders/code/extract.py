"""Extract the program from a response: its last complete fenced code block."""

import re

from priml.graders.extract import final_text

MAX_PROGRAM = 100_000
"""Longest program, in characters, that is run at all."""

_FENCE = re.compile(r"^(?P<before>[^\n]*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n`]*)$", re.MULTILINE)
_PYTHON = re.compile(r"[{.\s]*(?:python|pypy|py)[\d.]*(?![\w-])", re.IGNORECASE)
_QUOTED = re.compile(r"([\"'])(?:\\.|(?!\1)[^\\\n])*\1")
_HIDDEN = {ord("<"): "\ue000", ord("["): "\ue001"}
_SHOWN = {0xE000: "<", 0xE001: "["}


def extract_program(response: str, *, bare: bool = False) -> str | None:
    """Return the program as it was written, or None without one.

    Of the complete fenced blocks, it is the last that is labelled as Python; if there is none, the last one without a
    label. A fence may follow text on its line: `Here: ```python`, or close a block behind the last line of code. Only
    what follows the thinking part is read (after the last `</think>`, before a `<think>` that was never closed), where
    tags in quotes are text of a program. With `bare`, a response without any fence, or before one that opens nothing,
    is a program as a whole.
    """
    text = _final_text(response)
    found: dict[str, str] = {}  # by label
    opening: re.Match[str] | None = None
    opened = indent = ""
    for fence in _FENCE.finditer(text):
        label = "python" if _PYTHON.match(fence["info"]) else fence["info"].strip().lower()
        has_text = bool(fence["before"].strip())
        if opening is not None and _closes(fence, opening):
            code = text[opening.end() + 1 : fence.end("before") if has_text else fence.start()]
            found[opened] = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
            opening = None
        elif label == "python" if has_text else opening is None or opening["before"].strip():
            opening, opened = fence, label
            indent = "" if has_text else fence["before"]  # a block within a list is indented like its fence
    program = found.get("python", found.get("", ""))
    if bare and not found.keys() & {"python", ""}:
        if "```" not in text:
            program = text
        elif opening is not None and not opening["info"]:
            program = text[: opening.start()]
    program = program.removeprefix("\ufeff")
    return program if program.strip() else None


def _closes(fence: re.Match[str], opening: re.Match[str]) -> bool:
    is_alike = fence["fence"][0] == opening["fence"][0] and len(fence["fence"]) >= len(opening["fence"])
    return is_alike and not fence["info"] and not (fence["before"].strip() and fence["fence"][0] == "~")


def _final_text(response: str) -> str:
    text = _QUOTED.sub(lambda quoted: quoted[0].translate(_HIDDEN), response)
    return final_text(text).translate(_SHOWN)


def extract_like_authors(response: str) -> str | None:
    """Return what the authors' program runs: the text after the last "```python" up to the next fence, else all."""
    text = response.rpartition("```python")[2].partition("```")[0]
    return text if text.strip() else None
