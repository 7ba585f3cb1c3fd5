"""Split texts where no bracket is open."""

import re
from functools import lru_cache

RELATION = re.compile(r"(?<![<>])=|[<>]=?|≠|\\in(?![A-Za-z]) ?|\\approx ?")
"""The signs between the sides of an equation or inequality, or between an element and its set."""


@lru_cache(maxsize=8192)
def split(text: str, separator: str) -> tuple[str, ...]:
    """Split a text at the separators outside all brackets."""
    if separator not in text:
        return (text,)
    depth, start, parts = 0, 0, []
    for at, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(separator, at) and at >= start:
            parts.append(text[start:at])
            start = at + len(separator)
    return (*parts, text[start:])


def split_relations(text: str) -> tuple[list[str], list[str]]:
    """Split equations and inequalities into their sides and the signs between them."""
    return split_at(text, RELATION)


def split_at(text: str, sign: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Split a text at the signs outside all brackets; return the parts and the signs between them."""
    parts, signs, start = [], [], 0
    for found in sign.finditer(text):
        if is_top_level(text, found.start()):
            parts.append(text[start : found.start()].strip())
            signs.append(found[0].strip())
            start = found.end()
    return [*parts, text[start:].strip()], signs


def is_top_level(text: str, at: int) -> bool:
    """Return whether no bracket is open at index `at`."""
    before = text[:at]
    return sum(map(before.count, "([{")) == sum(map(before.count, ")]}"))
