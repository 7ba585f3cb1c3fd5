"""Which sources a data set mixes, for numbers by source."""

from __future__ import annotations

from collections.abc import Iterable

from priml.types import Problem

MAX_SOURCES = 50
"""With more than that, numbers by source would be numbers by problem."""


def source_origin(problem: Problem) -> str:
    """Its source up to the first `/`: `numina` of `numina/olympiads/7`."""
    return problem.source.partition("/")[0]


def sources_in(problems: Iterable[Problem]) -> tuple[str, ...]:
    """The sources to tell apart, sorted; none when there is only one, or there are more than `MAX_SOURCES`."""
    names = sorted({source_origin(problem) for problem in problems})
    return tuple(names) if 1 < len(names) <= MAX_SOURCES else ()
