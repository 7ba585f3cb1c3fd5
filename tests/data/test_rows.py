"""What `test_sources.py` does not reach by way of problems."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.data.rows import BadRow, BadRowError, convert_rows, numbered_rows, read_cell, read_text
from priml.errors import DataError


def make_number(row: Mapping[str, Any], number: int) -> tuple[int, int]:
    if "x" not in row:
        raise BadRowError("no x")
    return number, row["x"]


def test_rows_keep_their_numbers_in_every_format(tmp_path: Path):
    rows = [{"x": 1}, {"y": 1}, {"x": 3}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist([{"x": 1}, {"x": None}, {"x": 3}]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json"):
        read = numbered_rows(tmp_path / name)
        items, skipped = convert_rows(read, make_number, origin=name, noun="row", on_bad_row="skip")
        assert items == [(1, 1), (3, 3)]
        assert skipped == (BadRow(2, "no x"),)
    assert [number for number, _ in numbered_rows(tmp_path / "a.parquet")] == [1, 2, 3]


def test_a_bad_row_stops_with_its_place_and_the_next_move():
    with pytest.raises(DataError, match=r"file:7: no x\. Mend the row, or leave such rows out: on_bad_row: skip"):
        convert_rows([(7, {"y": 1})], make_number, origin="file", noun="row", on_bad_row="stop")


def test_what_should_have_been_there_is_named_when_there_is_nothing():
    with pytest.raises(DataError, match="needed at least one labelled response"):
        convert_rows([], make_number, origin="file", noun="labelled response", on_bad_row="skip")


def test_a_dot_reaches_into_an_object_unless_a_column_is_called_so():
    assert read_cell({"a": {"b": 1}}, "a.b") == 1
    assert read_cell({"a": {"b": 1}, "a.b": 2}, "a.b") == 2
    assert read_cell({"a": 1}, "a.b") is None


def test_a_response_is_text():
    assert read_text("yes", "response") == "yes"
    with pytest.raises(BadRowError, match="response is 3, needed the text of a response"):
        read_text(3, "response")


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 3, [None, pa.array(["ab", "cd", "ef"]).buffers()[1], pa.py_buffer(b"ab\xff\xfeef")]
)
FAR = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("us"))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (NOT_UTF8, "extra holds a value that cannot be read"),
        (FAR, "extra holds a value that cannot be read"),
        (pa.array([0, 2**30, 0], pa.int32()).cast(pa.date32()), "extra holds a value that cannot be read"),
        (pa.StructArray.from_arrays([FAR], ["inner"]), "extra holds a value that cannot be read"),
        (pa.array([0, 1, 0]).cast(pa.timestamp("us", tz="Mars/Olympus")), "extra holds a value that cannot be read"),
    ],
)
def test_a_parquet_value_that_python_cannot_hold_is_one_bad_row(tmp_path: Path, column: pa.Array, said: str):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": ["x", "y", "z"], "extra": column}), path)
    arguments: Any = {"origin": str(path), "noun": "row"}
    with pytest.raises(DataError, match=rf"data.parquet:[12]: {said}"):
        convert_rows(numbered_rows(path), lambda row, _: row["prompt"], on_bad_row="stop", **arguments)


def test_rows_beside_an_unreadable_one_are_read(tmp_path: Path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": ["x", "y", "z"], "extra": FAR}), path)
    arguments: Any = {"origin": str(path), "noun": "row"}
    kept, bad = convert_rows(numbered_rows(path), lambda row, _: row["prompt"], on_bad_row="skip", **arguments)
    assert (kept, [one.row for one in bad]) == (["x", "z"], [2])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "data.jsonl")
    with pytest.raises(DataError, match="is not a regular file"):
        numbered_rows(tmp_path / "data.jsonl")
