"""All rollouts of a run, dropped ones too, as one table without tokens: what filters, sorting and search look at."""

# pyarrow.compute makes its functions when it is imported, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Pay = Literal["wrong_paid", "right_unpaid"]
"""Wrong but paid more than the mean of its prompt, right but paid less: where verifier and PRM disagree."""
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("row", pa.int32()),
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
        ("source", pa.string()),
        ("verdict", pa.string()),
        ("outcome", pa.float32()),
        ("filter_status", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("paid", pa.float32()),
        ("above", pa.float32()),
        ("reason", pa.string()),
        ("answer", pa.string()),
        ("gold", pa.string()),
    ]
)
"""`row` counts within the file of the step; `tokens` are all of the response; `paid` is its summed process reward, and
`above` how much that is above the mean of its prompt; null where none was computed."""
SEARCHED = ("problem_id", "answer", "gold", "reason")
LONGEST_TEXT = 200
"""Characters of a text that the table keeps: an answer can be as long as a response."""
SEARCH_SECONDS = 2.0
"""How long one search reads the texts of responses, the latest steps first."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows, in which order. What is None or empty does not filter."""

    filter_status: str | None = None
    verdict: str | None = None
    pay: Pay | None = None
    problem: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    text: str = ""
    """Found, whatever its case, in one of `SEARCHED`."""
    inside: str = ""
    """Found in the text of the response."""
    sort: str = "step"
    descending: bool = True
    page: int = 1
    size: int = 50

    def __post_init__(self) -> None:
        if self.sort not in SCHEMA.names:
            raise ValueError(f"sort: found {self.sort!r}, need one of {', '.join(SCHEMA.names)}")
        if self.pay is not None and self.pay not in get_args(Pay):
            raise ValueError(f"pay: found {self.pay!r}, need one of {', '.join(get_args(Pay))}")
        if not (self.page >= 1 and 1 <= self.size <= 500):
            raise ValueError(f"page, size: found {self.page}, {self.size}; need a page from 1 on, of 1 to 500 rows")


@dataclass(frozen=True, slots=True)
class Found:
    """One page of the rows that a query finds."""

    rows: list[dict[str, Any]]
    count: int
    """Rows on all pages."""
    total: int
    """Rows without any filter."""
    note: str = ""
    """What was not looked at, in words."""


class RolloutIndex:
    """The table of one run. `refresh` reads what has been written since."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds a parquet file per step."""
        self._folder = folder
        self._tables: dict[Path, tuple[tuple[int, int], pa.Table]] = {}
        self.table = SCHEMA.empty_table()
        self.notes: list[str] = []
        """Files that cannot be read, in sentences."""

    def refresh(self) -> bool:
        """Read new and rewritten files; whether there were any, or some went away."""
        files = {path: _stamp(path) for path in self._folder.glob("*.parquet") if path.stem.isdecimal()}
        if files == {path: stamp for path, (stamp, _) in self._tables.items()}:
            return False
        self.notes.clear()
        tables: dict[Path, tuple[tuple[int, int], pa.Table]] = {}
        for path in sorted(files):
            known = self._tables.get(path)
            tables[path] = known if known and known[0] == files[path] else (files[path], self._read(path))
        self._tables = tables
        self.table = pa.concat_tables([SCHEMA.empty_table(), *(table for _, table in tables.values())])
        return True

    def _read(self, path: Path) -> pa.Table:
        try:
            return read_scalars(path)
        except (pa.ArrowException, OSError) as error:
            self.notes.append(f"rollouts/{path.name} cannot be read ({str(error).splitlines()[0]}).")
            return SCHEMA.empty_table()

    def find(self, query: Query) -> Found:
        """One page of what a query finds; rows that tie stand in the order of their steps and files."""
        table, note = self.table, ""
        if query.inside:
            table, note = self._with_text(query.inside)
        found = table.filter(_matches(table, query)) if table.num_rows else table
        start = (query.page - 1) * query.size
        order = pc.sort_indices(
            found,
            sort_keys=[(query.sort, "descending" if query.descending else "ascending"), ("step", "ascending")],
        )
        rows = found.take(order.slice(start, query.size)).to_pylist()
        return Found(rows, found.num_rows, self.table.num_rows, note)

    def members(self, step: int, problem: str) -> list[int]:
        """The rows of all responses to a problem in the file of a step."""
        table = self._tables.get(self._folder / f"{step:06d}.parquet")
        if table is None or not table[1].num_rows:
            return []
        return table[1].filter(pc.equal(table[1]["problem_id"], problem))["row"].to_pylist()

    def _with_text(self, text: str) -> tuple[pa.Table, str]:
        """The rows whose response holds a text, as far as the time allows."""
        end = time.monotonic() + SEARCH_SECONDS
        found: list[pa.Table] = []
        for path, (_, table) in reversed(self._tables.items()):
            if table.num_rows:
                response = pq.read_table(path, columns=["response"])["response"]
                found.append(table.filter(pc.match_substring(response, text, ignore_case=True)))
            if time.monotonic() > end:
                return _whole(found), f"Searched for {SEARCH_SECONDS:g} s: the responses back to step {int(path.stem)}."
        return _whole(found), ""


def _whole(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([SCHEMA.empty_table(), *reversed(tables)])


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _matches(table: pa.Table, query: Query) -> pa.Array:
    kept: pa.Array = pa.repeat(True, table.num_rows)
    for test in _tests(table, query):
        kept = pc.and_(kept, pc.fill_null(test, False))
    return kept


def _tests(table: pa.Table, query: Query) -> Iterator[pa.Array]:
    for name, wanted in (
        ("filter_status", query.filter_status),
        ("verdict", query.verdict),
        ("problem_id", query.problem),
    ):
        if wanted:
            yield pc.equal(table[name], wanted)
    if query.pay:
        yield pc.equal(table["verdict"], "wrong" if query.pay == "wrong_paid" else "correct")
        yield (pc.greater if query.pay == "wrong_paid" else pc.less)(table["above"], 0.0)
    if query.first_step is not None:
        yield pc.greater_equal(table["step"], query.first_step)
    if query.last_step is not None:
        yield pc.less_equal(table["step"], query.last_step)
    if query.text:
        found = [pc.match_substring(table[name], query.text, ignore_case=True) for name in SEARCHED]
        some = pc.fill_null(found[0], False)
        for more in found[1:]:
            some = pc.or_(some, pc.fill_null(more, False))
        yield some


def read_scalars(path: Path) -> pa.Table:
    """The rows of one rollout file without their tokens; a column that the file lacks is null."""
    file = pq.ParquetFile(path)
    here = set(file.schema_arrow.names)
    lengths = "segments" if "segments" in here else "response_ids"
    taken = [name for name in (*SCHEMA.names, lengths, "process_rewards") if name in here and name != "step"]
    parts = [_scalars(file.read_row_group(i, columns=taken), lengths) for i in range(file.num_row_groups)]
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    step = pa.array(np.full(table.num_rows, int(path.stem), np.int32))
    row = pa.array(np.arange(table.num_rows, dtype=np.int32))
    table = table.set_column(0, "step", step).set_column(1, "row", row)
    return table.set_column(SCHEMA.get_field_index("above"), SCHEMA.field("above"), _above(table)).combine_chunks()


def _above(table: pa.Table) -> pa.Array:
    """What a response was paid, less the mean of the responses to its prompt."""
    codes = table["problem_id"].combine_chunks().dictionary_encode().indices.fill_null(0).to_numpy()
    unpaid = table["paid"].is_null().to_numpy()
    paid = np.where(unpaid, 0.0, table["paid"].fill_null(0.0).to_numpy())
    counts = np.maximum(np.bincount(codes, weights=~unpaid), 1)
    return pa.array(paid - (np.bincount(codes, weights=paid) / counts)[codes], pa.float32(), mask=unpaid)


def _scalars(table: pa.Table, lengths: str) -> pa.Table:
    """A row group at a time: the numbers of all tokens of a step need not fit into memory at once."""
    columns = {name: table[name] for name in SCHEMA.names if name in table.column_names}
    columns["tokens"] = _lengths(table[lengths]) if lengths in table.column_names else pa.nulls(table.num_rows)
    if "process_rewards" in table.column_names:
        columns["paid"] = _sums(table["process_rewards"])
    for name, column in columns.items():
        if SCHEMA.field(name).type == pa.string():
            columns[name] = pc.utf8_slice_codeunits(column, 0, LONGEST_TEXT)
    return pa.table(
        {name: columns.get(name, pa.nulls(table.num_rows)) for name in SCHEMA.names},
    ).cast(SCHEMA)


def _lengths(column: pa.ChunkedArray) -> pa.Array:
    if not pa.types.is_struct(column.type.value_type):
        return pc.list_value_length(column)
    return _totals(column, pc.struct_field(pc.list_flatten(column), "num_tokens"))


def _sums(column: pa.ChunkedArray) -> pa.Array:
    return _totals(column, pc.list_flatten(column))


def _totals(column: pa.ChunkedArray, values: pa.ChunkedArray) -> pa.Array:
    """The sum of each list; null where the list is."""
    sums = np.bincount(pc.list_parent_indices(column).to_numpy(), weights=values.to_numpy(), minlength=len(column))
    return pa.array(sums, mask=column.is_null().to_numpy())
