import gzip
import json
from pathlib import Path

import pytest

from priml.config.data import FileSource
from priml.data.prepare.eurus import can_be_written, write_rows
from priml.data.sources import read_problems
from priml.types import CodeTests, Message, Problem

CODE = Path(__file__).resolve().parents[4] / "shared" / "data" / "code"
PROBLEMS = [
    Problem("a", "1+1?", "2", source="s"),
    Problem("b", (Message("system", ""), Message("user", "1+2?")), "\\frac{3}{1}", source="s"),
    Problem("c", "Echo.", "", "s", "code", CodeTests("stdin", inputs=("1\n",), outputs=("1\n",))),
    Problem(
        "d",
        "Double it.",
        "",
        "s",
        "code",
        CodeTests("assert_list", asserts=("assert f(1) == 2",), setup="import math", entry_point="f"),
    ),
    Problem("e", "Any.", "", "s", "code", CodeTests("script", test="assert f(1) == 2")),
    Problem("f", "Any.", "", "s", "code", CodeTests("check", test="def check(c):\n    assert c(1)", entry_point="f")),
]


def test_the_rows_read_again_are_the_same_problems(tmp_path):
    assert all(map(can_be_written, PROBLEMS))
    write_rows(tmp_path / "train.parquet", PROBLEMS)
    found = read_problems(FileSource(path=tmp_path / "train.parquet")).problems
    for one, other in zip(found, PROBLEMS, strict=True):
        assert (one.id, one.source, one.kind, one.answer, one.tests) == (
            other.id,
            other.source,
            other.kind,
            other.answer,
            other.tests,
        )
    assert [message.content for message in found[1].prompt] == ["", "1+2?"]


def test_tests_without_a_place_are_told():
    stub = CodeTests("check", stub="def f(x):\n", test="def check(c):\n    assert c(1)", entry_point="f")
    assert not can_be_written(Problem("h", "def f(x):\n", "", "s", "code", stub))


@pytest.mark.skipif(not CODE.is_dir(), reason="not on this machine")
@pytest.mark.parametrize("name", ["mbpp_1_510.jsonl", "apps_sample_5.jsonl", "leetcode_train.jsonl.gz"])
def test_public_rows_of_code_can_be_written(name: str, tmp_path):
    opened = gzip.open if name.endswith(".gz") else open
    with opened(CODE / name, "rt") as file:
        lines = [line for line, _ in zip(file, range(60), strict=False)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    problems = read_problems(FileSource(path=tmp_path / "rows.jsonl")).problems
    assert [problem.id for problem in problems if not can_be_written(problem)] == []
    write_rows(tmp_path / "train.parquet", problems)
    found = read_problems(FileSource(path=tmp_path / "train.parquet")).problems
    assert [problem.tests for problem in found] == [problem.tests for problem in problems]
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
