"""`priml verify`: each response with its verdict, reason and layer."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.cli.main import main

STDIN = {"kind": "stdin", "inputs": ["1\n"], "outputs": ["2\n"]}


@pytest.fixture
def rows(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def printed(capsys, *arguments):
    code = main(["verify", *arguments])
    return code, capsys.readouterr()


def test_each_row_gets_a_line_and_the_counts_follow(rows, capsys):
    path = rows(
        {"response": "\\boxed{5}", "gold": "5"},
        {"response": "\\boxed{6}", "answer": "5"},
        {"completion": "five", "gold": "5", "answer": "the extracted one"},
        {"response": "```python\nprint(2)\n```", "tests": STDIN},
    )
    code, said = printed(capsys, path)
    lines = said.out.splitlines()
    assert code == 0
    assert lines[:4] == [
        "1\tcorrect\tvalues\tequal\t5 | 5",
        "2\twrong\tvalues\tdifferent value\t6 | 5",
        "3\twrong\textraction\tno answer\t | 5",
        "4\tcorrect\ttests\tpassed\tprint(2) | its tests",
    ]
    assert lines[4] == "4 responses, 0 rows skipped"
    assert "      1  wrong: no answer (extraction)" in lines


def test_rollouts_of_a_run_are_such_a_file(tmp_path, capsys):
    path = tmp_path / "000001.parquet"
    row = {"problem_id": "p", "prompt": "?", "response": "\\boxed{5}", "answer": "5", "gold": "7", "verdict": "correct"}
    pq.write_table(pa.Table.from_pylist([row]), path)
    assert printed(capsys, str(path))[1].out.startswith("1\twrong\tvalues\tdifferent value\t5 | 7\n")


def test_settings_of_the_verifier_may_follow(rows, capsys):
    path = rows({"response": "the answer is 5", "gold": "5"}, {"response": "5"})
    code, said = printed(capsys, path, "verify.kind=math", "verify.bare_answers=true", "on_bad_row=skip")
    assert code == 0
    assert said.out.splitlines()[:2] == [
        "2\tskipped\t\tno answer: needed a value in answer, found values in response, prompt",
        "1\tcorrect\tvalues\tequal\t5 | 5",
    ]


def test_one_pair_is_explained(capsys):
    code, said = printed(capsys, "--explain", "so \\boxed{6}", "5")
    assert code == 0
    assert said.out.splitlines() == [
        "answer   6",
        "gold     5",
        "layer    values",
        "verdict  wrong: different value",
    ]
    assert "must stand in \\boxed" in printed(capsys, "--explain", "so 5", "5")[1].out
    assert "correct: equal" in printed(capsys, "verify.bare_answers=true", "--explain", "so 5", "5")[1].out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "found no FILE"),
        (["nowhere.jsonl"], "no such data file"),
        (["rows.jsonl", "colums=x"], "colums: unknown key"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    code, said = printed(capsys, *arguments)
    assert code == 2
    assert message in said.err


def test_a_row_without_a_response_is_named(rows, capsys):
    code, said = printed(capsys, rows({"gold": "5"}))
    assert code == 2
    assert "rows.jsonl:1: no response" in said.err
