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
class Decision:
    """Whether a row stays, and why not; or what is to be known of one that stays."""

    is_kept: bool = True
    reason: str = ""
    """Short and stable, fit for counting."""
    other: str | None = None
    """The row or benchmark problem that it was compared with, or what went wrong."""
    value: float | None = None
    """A similarity, or a pass rate."""


KEPT = Decision()


def dropped(reason: str, other: str | None = None, value: float | None = None) -> Decision:
    """The decision of a row that goes."""
    return Decision(False, reason, other, value)


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("other", pa.string()),
        ("value", pa.float64()),
    ]
)


def write_decisions(path: Path, rows: Sequence[tuple[Problem, Decision]]) -> None:
    """The file of a stage: every row that entered it, in order. Complete or absent."""
    table = pa.Table.from_pylist(
        [
            {
                "id": problem.id,
                "source": problem.source,
                "kind": problem.kind,
                "problem": question(problem),
                "answer": problem.answer,
                "decision": "kept" if decision.is_kept else "dropped",
                "reason": decision.reason,
                "other": decision.other,
                "value": decision.value,
            }
            for problem, decision in rows
        ],
        schema=_SCHEMA,
    )
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, aside)
    put_in_place(aside, path)


def read_decisions(path: Path) -> list[tuple[str, Decision]]:
    """The id and decision of each row of a stage that is done."""
    rows = pq.read_table(path, columns=["id", "decision", "reason", "other", "value"]).to_pylist()
    return [(row["id"], Decision(row["decision"] == "kept", row["reason"], row["other"], row["value"])) for row in rows]


def count_decisions(decisions: Sequence[Decision]) -> dict[str, dict[str, int]]:
    """How many rows were dropped, and how many of those kept are noted, by reason; the most frequent first."""
    counts = {
        name: Counter(decision.reason for decision in decisions if decision.is_kept is kept and decision.reason)
        for name, kept in (("dropped", False), ("noted", True))
    }
    return {name: dict(found.most_common()) for name, found in counts.items()}
