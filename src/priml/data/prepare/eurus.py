"""The training set that a preparation leaves: rows of Eurus-2-RL-Data, with an `id`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from priml.data.rows import BadRowError
from priml.data.sources import to_problem
from priml.files import put_in_place
from priml.types import CodeTests, Problem

_MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string())])),
        ("tests", pa.string()),
        ("entry_point", pa.string()),
        ("starter_code", pa.string()),
    ]
)
"""The last three are for programs; Eurus rows have no place for tests that are not inputs and outputs."""


def write_rows(path: Path, problems: Sequence[Problem]) -> None:
    """Write problems that `can_be_written`, so that reading the file gives them again."""
    rows = [{**_row(problem), "extra_info": {"index": i, "split": "train"}} for i, problem in enumerate(problems)]
    aside = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), aside)
    put_in_place(aside, path)


def can_be_written(problem: Problem) -> bool:
    """Whether the problem is the same when it is read again: prompt, answer, and tests."""
    try:
        read = to_problem(_row(problem), {}, name="", number=0)
    except BadRowError:
        return False
    return (_said(read), read.answer, read.kind, read.tests) == (
        _said(problem),
        problem.answer,
        problem.kind,
        problem.tests,
    )


def _said(problem: Problem) -> list[dict[str, str]]:
    if isinstance(problem.prompt, str):
        return [{"content": problem.prompt, "role": "user"}]
    return [{"content": message.content, "role": message.role} for message in problem.prompt]


def _row(problem: Problem) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": problem.id,
        "data_source": problem.source,
        "prompt": _said(problem),
        "ability": problem.kind,
        "reward_model": {"ground_truth": problem.answer, "style": "rule"},
    }
    return row if problem.tests is None else row | _tests(problem.tests, problem.meta)


def _tests(tests: CodeTests, meta: Mapping[str, Any]) -> dict[str, Any]:
    """As priml keeps them; those that Eurus rows have a place for stand there, too, for other programs."""
    starter = meta.get("starter_code")
    row: dict[str, Any] = {"entry_point": tests.entry_point}
    match tests.kind:
        case "stdin" | "call":
            own = {"inputs": list(tests.inputs), "outputs": list(tests.outputs), "fn_name": tests.entry_point}
            row |= {"reward_model": {"ground_truth": json.dumps(own | _as_lines(tests)), "style": "rule"}}
            row |= {"starter_code": starter if isinstance(starter, str) else None}
        case "assert_list":
            own = {"setup": tests.setup, "asserts": list(tests.asserts)}
        case "check":
            own = {"prelude": tests.setup, "test": tests.test}
        case "script":
            own = {"imports": [tests.setup] if tests.setup else [], "test": tests.test}
    return row | {"tests": json.dumps({"kind": tests.kind, **own})}


def _as_lines(tests: CodeTests) -> dict[str, list[str]]:
    """Of calls, a line for each argument, as the authors have them."""
    if tests.kind == "stdin":
        return {}
    arguments = ["\n".join(map(json.dumps, given)) for given in tests.inputs]
    return {"inputs": arguments, "outputs": list(map(json.dumps, tests.outputs))}
