"""Solutions with labelled steps: ProcessBench and PRMBench files, as published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from priml.data.labelled import Response
from priml.data.rows import (
    BadRowError,
    convert_rows,
    file_digest,
    numbered_rows,
    read_list,
    read_prompt,
    read_texts,
    shown,
)
from priml.types import Problem

T = TypeVar("T")

CORRECT = "correct"
"""The class of PRMBench's unmodified solutions."""
_TWIN_OF = "redundency"  # sic: PRMBench takes the unmodified solutions from the rows of this class


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLabels:
    """The errors of a solution."""

    wrong_steps: frozenset[int]
    """Indices from 0. ProcessBench names the first wrong step only."""
    classification: str = ""
    """PRMBench's class of error, or `CORRECT`."""
    twin: str = ""
    """PRMBench: what a modified solution and the unmodified one have in common."""

    @property
    def first_wrong(self) -> int:
        """Index of the first wrong step, -1 when there is none."""
        return min(self.wrong_steps, default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSteps(StepLabels):
    """A solution and what is wrong with it."""

    id: str
    problem: str
    steps: tuple[str, ...]

    @property
    def response(self) -> Response:
        """The solution, to be scored."""
        problem = Problem(id=self.id, prompt=self.problem, answer="")
        return Response(problem, "", float(not self.wrong_steps), steps=self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSteps(StepLabels):
    """The scores that a PRM gives to the steps of a solution, and what is wrong with it."""

    scores: tuple[float, ...]
    """One per step."""


def read_process_bench(path: Path, *, limit: int | None = None) -> tuple[list[LabelledSteps], str]:
    """Solutions of a ProcessBench file, and its sha256. Raises `DataError` for a row that cannot be used.

    `limit` takes that many, evenly spread over the file, which holds all erroneous solutions before the correct ones.
    """
    rows, _ = convert_rows(numbered_rows(path), _process_bench_row, origin=str(path), noun="solution", on_bad_row=None)
    return _spread(rows, limit), file_digest(path)


def read_prm_bench(path: Path, *, limit: int | None = None) -> tuple[list[LabelledSteps], str]:
    """Solutions of a PRMBench file as its authors' loader gives them, and its sha256.

    Of rows with the same class and index the first counts; the unmodified solutions come from the rows of one class.
    `limit` takes that many rows, evenly spread over the file. Raises `DataError` for a row that cannot be used.
    """
    rows, _ = convert_rows(numbered_rows(path), _prm_bench_row, origin=str(path), noun="solution", on_bad_row=None)
    first: dict[str, LabelledSteps] = {}
    for pair in _spread(rows, limit):
        for solution in pair:
            first.setdefault(solution.id, solution)
    return list(first.values()), file_digest(path)


def _spread(rows: list[T], limit: int | None) -> list[T]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _process_bench_row(row: Mapping[str, Any], number: int) -> LabelledSteps:
    steps = read_texts(row.get("steps"), "steps")
    label = row.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or not -1 <= label < len(steps):
        raise BadRowError(f"label is {shown(label)}, needed the index of a step, 0 to {len(steps) - 1}, or -1")
    return LabelledSteps(
        id=str(row.get("id", number)),
        problem=_problem(row, "problem"),
        steps=steps,
        wrong_steps=frozenset() if label == -1 else frozenset([label]),
    )


def _prm_bench_row(row: Mapping[str, Any], number: int) -> list[LabelledSteps]:
    """The modified solution, after the unmodified one where this row's class brings it."""
    kind, index = (_text(row, name) for name in ("classification", "idx"))
    steps = read_texts(row.get("modified_process"), "modified_process")
    needed = "a list of step numbers, counted from 1"
    wrong = read_list(row.get("error_steps"), "error_steps", needed, lambda k: isinstance(k, int), may_be_empty=True)
    modified = LabelledSteps(
        id=f"{kind}_{index}",
        problem=_problem(row, "modified_question"),
        steps=steps,
        wrong_steps=frozenset(k - 1 for k in wrong if 1 <= k <= len(steps)),
        classification=kind,
        twin=index,
    )
    if kind != _TWIN_OF:
        return [modified]
    unmodified = LabelledSteps(
        id=f"{CORRECT}_{index}",
        problem=_problem(row, "original_question"),
        steps=read_texts(row.get("original_process"), "original_process"),
        wrong_steps=frozenset(),
        classification=CORRECT,
        twin=index,
    )
    return [unmodified, modified]


def _problem(row: Mapping[str, Any], column: str) -> str:
    problem = read_prompt(row.get(column), column)
    if not isinstance(problem, str):
        raise BadRowError(f"{column} is a chat, needed text")
    return problem


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise BadRowError(f"{column} is {shown(value)}, needed text")
    return value
