"""What became of each row in a stage of preparation, and the file that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from priml.data.prepare.rules import question
from priml.files import put_in_place
from priml.types import Problem


@dataclass(frozen=True, slots=True)
class Fate:
    """Whether a row stays, and why not; or what is to be known of one that stays."""

    is_kept: bool = True
    reason: str = ""
    """Short and stable, fit for counting."""
    other: str | None = None
    """The row or benchmark problem that it was compared with, or what went wrong."""
    value: float | None = None
    """A similarity, or a pass rate."""


KEPT = Fate()


def dropped(reason: str, other: str | None = None, value: float | None = None) -> Fate:
    """The fate of a row that goes."""
    return Fate(False, reason, other, value)


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("other", pa.string()),
        ("value", pa.float64()),
    ]
)


def write_fates(path: Path, rows: Sequence[tuple[Problem, Fate]]) -> None:
    """The file of a stage: every row that entered it, in order. Complete or absent."""
    table = pa.Table.from_pylist(
        [
            {
                "id": problem.id,
                "source": problem.source,
                "kind": problem.kind,
                "problem": question(problem),
                "answer": problem.answer,
                "fate": "kept" if fate.is_kept else "dropped",
                "reason": fate.reason,
                "other": fate.other,
                "value": fate.value,
            }
            for problem, fate in rows
        ],
        schema=_SCHEMA,
    )
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, aside)
    put_in_place(aside, path)


def read_fates(path: Path) -> list[tuple[str, Fate]]:
    """The id and fate of each row of a stage that is done."""
    rows = pq.read_table(path, columns=["id", "fate", "reason", "other", "value"]).to_pylist()
    return [(row["id"], Fate(row["fate"] == "kept", row["reason"], row["other"], row["value"])) for row in rows]


def count_fates(fates: Sequence[Fate]) -> dict[str, dict[str, int]]:
    """How many rows were dropped, and how many of those kept are noted, by reason; the most frequent first."""
    counts = {
        name: Counter(fate.reason for fate in fates if fate.is_kept is kept and fate.reason)
        for name, kept in (("dropped", False), ("noted", True))
    }
    return {name: dict(found.most_common()) for name, found in counts.items()}
