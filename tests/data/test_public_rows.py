"""Rows as public data sets have them: read as they are, taken to pieces, or refused with the row named."""

import base64
import json
import pickle
import zlib
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.config.data import FileSource
from priml.data.sources import read_problems
from priml.errors import DataError
from priml.types import Message

PAIRS = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "3\n"]}
CHAT = [{"role": "user", "content": "Next?"}]
STARTER = "class Solution:\n    def nextOne(self, x: int) -> int:\n        "
STDIN = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}, {"input": "2\n", "output": "3\n", "testtype": "stdin"}]
FUNCTIONAL = [{"input": "[1, 2]\n3", "output": "[4]", "testtype": "functional"}]


def read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problems(FileSource(path=path, **options))


def read_one(tmp_path, row):
    return read(tmp_path, row).problems[0]


def verl(truth, **more):
    return {"data_source": "s", "prompt": CHAT, "reward_model": {"ground_truth": truth, "style": "rule"}, **more}


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


LCB = {
    "question_title": "t",
    "question_content": "Next?",
    "platform": "atcoder",
    "question_id": "abc1",
    "starter_code": "",
}
LCB_CALL = LCB | {"starter_code": STARTER, "metadata": json.dumps({"func_name": "nextOne"})}

CODE = {
    "fn_name null": (verl(json.dumps({**PAIRS, "fn_name": None}), ability="code"), "stdin"),
    "fn_name empty": (verl(json.dumps({**PAIRS, "fn_name": ""}), ability="code"), "stdin"),
    "tests as an object": (verl({**PAIRS, "fn_name": None}, ability="code"), "stdin"),
    "coding": (verl(json.dumps(PAIRS), ability="coding"), "stdin"),
    "CODE": (verl(json.dumps(PAIRS), ability="CODE"), "stdin"),
    "no ability": (verl(json.dumps(PAIRS)), "stdin"),
    "reward_model as text": (
        {"prompt": "Next?", "ability": "code", "reward_model": json.dumps({"ground_truth": json.dumps(PAIRS)})},
        "stdin",
    ),
    "Skywork check": (
        verl(
            json.dumps({"entry_point": "f", "test_code": "def check(c):\n    assert c(1) == 2", "import_prefix": ""}),
            ability="code",
        ),
        "check",
    ),
    "APPS": ({"question": "Next?", "input_output": json.dumps(PAIRS), "solutions": "[]", "starter_code": ""}, "stdin"),
    "APPS call": (
        {"question": "f?", "input_output": json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [[2]]})},
        "call",
    ),
    "TACO lines": (
        {"question": "Next?", "input_output": json.dumps({"inputs": [["1", "5"]], "outputs": [["6"]]})},
        "stdin",
    ),
    "LiveCodeBench": (
        LCB | {"public_test_cases": json.dumps(STDIN), "private_test_cases": packed(json.dumps(STDIN))},
        "stdin",
    ),
    "LiveCodeBench, hidden tests as text": (
        LCB | {"public_test_cases": json.dumps(STDIN), "private_test_cases": json.dumps(STDIN)},
        "stdin",
    ),
    "LiveCodeBench, public tests alone": (LCB | {"public_test_cases": json.dumps(STDIN)}, "stdin"),
    "LiveCodeBench call": (LCB_CALL | {"public_test_cases": json.dumps(FUNCTIONAL)}, "call"),
    "DeepCoder": ({"problem": "Next?", "tests": json.dumps(STDIN)}, "stdin"),
    "DeepCoder as a list": ({"problem": "Next?", "tests": STDIN, "metadata": "{}"}, "stdin"),
    "DeepCoder call": ({"problem": "Next?", "tests": FUNCTIONAL, "metadata": {"func_name": "nextOne"}}, "call"),
    "PrimeIntellect call": (
        {"problem": "f?", "tests": [{"type": "function_call", "fn_name": "f", "input": [1], "output": [2]}]},
        "call",
    ),
    "open-r1": (
        {"prompt": "Next?", "verification_info": json.dumps({"language": "python", "test_cases": STDIN})},
        "stdin",
    ),
    "TACO within DeepCoder": ({"problem": "Next?", "tests": json.dumps(PAIRS)}, "stdin"),
    "CodeContests": (
        {
            "description": "Next?",
            "public_tests": {"input": ["1"], "output": ["2"]},
            "private_tests": {"input": [], "output": []},
        },
        "stdin",
    ),
    "HumanEval": (
        {
            "task_id": "HumanEval/0",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "test": "def check(c):\n    assert c(1) == 2",
        },
        "check",
    ),
    "MBPP": (
        {"task_id": 1, "text": "Write it.", "code": "", "test_list": ["assert f(1) == 2"], "test_setup_code": ""},
        "assert_list",
    ),
    "MBPP sanitized": (
        {"prompt": "Write it.", "test_list": ["assert f(1) == 2"], "test_imports": ["import math"]},
        "assert_list",
    ),
    "KodCode": (
        {
            "question": "Write it.",
            "test": "from solution import f\n\ndef test_f():\n    assert f(1) == 2",
            "test_info": [{"function_name": "f", "function_declaration": "def f(x):"}],
        },
        "script",
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_a_row_of_a_programming_set_is_read(tmp_path, name):
    row, kind = CODE[name]
    problem = read_one(tmp_path, row)
    assert (problem.kind, problem.tests.kind) == ("code", kind)


def test_hidden_tests_are_read_too(tmp_path):
    row, _ = CODE["LiveCodeBench"]
    assert read_one(tmp_path, row).tests.outputs == ("2\n", "3\n", "2\n", "3\n")


def test_a_pickle_is_read_as_text_or_not_at_all(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("evil",))

    for value in (Evil(), ["a", "b"], {"input": "1"}, 7):
        row = LCB | {"public_test_cases": json.dumps(STDIN), "private_test_cases": packed(value)}
        with pytest.raises(DataError, match=r"rows.jsonl:1: private_test_cases"):
            read_one(tmp_path, row)


@pytest.mark.parametrize("name", ["LiveCodeBench call", "MBPP", "KodCode"])
def test_the_name_that_a_program_must_have_is_in_its_question(tmp_path, name):
    problem = read_one(tmp_path, CODE[name][0])
    asked_for = {"call": "def nextOne", "assert_list": "assert f(1) == 2", "script": "def f(x):"}[problem.tests.kind]
    assert asked_for in problem.prompt


def test_arguments_and_values_of_calls_are_parsed(tmp_path):
    tests = read_one(tmp_path, CODE["LiveCodeBench call"][0]).tests
    assert (tests.inputs, tests.outputs, tests.entry_point) == (([[1, 2], 3],), ([4],), "nextOne")
    assert read_one(tmp_path, CODE["TACO lines"][0]).tests.inputs == ("1\n5\n",)


def test_whole_numbers_of_thousands_of_digits_are_read(tmp_path):
    truth = '{"fn_name": "f", "inputs": [[1]], "outputs": [' + "9" * 6000 + "]}"
    assert read_one(tmp_path, verl(truth, ability="code")).tests.outputs == (10**6000 - 1,)


def test_a_function_that_returns_nothing_is_judged_by_its_argument(tmp_path):
    starter = "class Solution:\n    def sortColors(self, nums: List[int]) -> None:\n"
    row = LCB | {"starter_code": starter, "metadata": '{"func_name": "sortColors"}'}
    tests = read_one(tmp_path, row | {"public_test_cases": [{"input": "[2, 1]", "output": "[1, 2]"}]}).tests
    assert tests.in_place
    assert not read_one(tmp_path, CODE["LiveCodeBench call"][0]).tests.in_place


REFUSED = {
    "no expected output": verl(json.dumps({"inputs": ["1", "2"], "outputs": ["", " \n"]}), ability="code"),
    "no expected value": verl(json.dumps({"fn_name": "f", "inputs": [[1]], "outputs": [None]}), ability="code"),
    "no test": {"problem": "Next?", "tests": []},
    "tests of two kinds": {"problem": "Next?", "tests": STDIN + FUNCTIONAL, "metadata": {"func_name": "f"}},
    "a function without a name": {"problem": "Next?", "tests": FUNCTIONAL},
    "a test that is none": {"problem": "Next?", "tests": [7]},
    "a test without output": {"problem": "Next?", "tests": [{"input": "1"}]},
    "junk for hidden tests": LCB | {"public_test_cases": json.dumps(STDIN), "private_test_cases": "%%%"},
    "metadata that is no JSON": {"problem": "f?", "tests": FUNCTIONAL, "metadata": "{"},
    "odd contest tests": {"description": "Next?", "public_tests": {"input": ["1"], "output": []}},
    "a solution without a whole box": {"problem": "p", "answer": "So \\boxed{4"},
    "an empty box": {"problem": "p", "answer": "So \\boxed{}."},
    "several answers": {"problem": "p", "answer": '["3", "4"]'},
    "true": {"problem": "p", "answer": True},
    "an object": {"problem": "p", "answer": {"value": 3}},
    "a reward model that is no object": {"prompt": "p", "reward_model": "rule"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_without_a_usable_gold_is_named_and_can_be_skipped(tmp_path, name):
    good = {"problem": "1+1?", "answer": "2"}
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*on_bad_row: skip"):
        read(tmp_path, good, REFUSED[name])
    loaded = read(tmp_path, good, REFUSED[name], good, on_bad_row="skip")
    assert ([p.answer for p in loaded.problems], [bad.row for bad in loaded.skipped]) == (["2", "2"], [2])


SOLUTION = "We add.\nTherefore the sum is \\boxed{\\frac{1}{2}}."

ANSWERS = {
    "DAPO": (verl("34", ability="MATH"), "34"),
    "mathematics": (verl("34", ability="Mathematics"), "34"),
    "Skywork": (verl('["34"]', ability="math"), "34"),
    "Skywork with blanks": (verl('[ "34" ]', ability="math"), "34"),
    "Python's list": (verl("['34']", ability="math"), "34"),
    "LaTeX in a list": (verl('["\\\\frac{1}{2}"]', ability="math"), "\\frac{1}{2}"),
    "an interval": ({"problem": "p", "answer": "[1, 2]"}, "[1, 2]"),
    "an interval of one letter": ({"problem": "p", "answer": "[a]"}, "[a]"),
    "Numina": ({"problem": "p", "answer": SOLUTION}, "\\frac{1}{2}"),
    "a box alone": ({"problem": "p", "answer": "\\boxed{4}"}, "4"),
    "the last of two boxes": ({"problem": "p", "answer": "\\boxed{3}, so \\boxed{4}"}, "4"),
    "a box in verl": (verl(SOLUTION, ability="math"), "\\frac{1}{2}"),
    "GSM8K": ({"question": "q", "answer": "1+1=2\n#### 2"}, "2"),
    "a number in verl": (verl(34, ability="math"), "34"),
    "a decimal number in verl": (verl(0.5, ability="math"), "0.5"),
    "reward_model as text": ({"prompt": json.dumps(CHAT), "reward_model": '{"ground_truth": "34"}'}, "34"),
    "a huge integer": ({"problem": "p", "answer": int("1" * 400)}, "1" * 400),
    "a huge negative integer": ({"problem": "p", "answer": -(10**399)}, "-1" + "0" * 399),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_a_response_can_equal(tmp_path, name):
    row, answer = ANSWERS[name]
    problem = read_one(tmp_path, row)
    assert (problem.kind, problem.answer) == ("math", answer)
    if name in ("DAPO", "reward_model as text"):
        assert problem.prompt == (Message(role="user", content="Next?"),)


def test_the_whole_solution_is_kept(tmp_path):
    assert read_one(tmp_path, {"problem": "p", "answer": SOLUTION}).meta["solution"] == SOLUTION


VALUES = [
    (pa.array([Decimal("1.50")]), "1.5"),
    (pa.array([Decimal("12345678901234567890123456789012345")]), "12345678901234567890123456789012345"),
    (pa.array([b"34"], pa.binary()), "34"),
    (pa.array([7], pa.uint64()), "7"),
    (pa.array([0.25], pa.float32()), "0.25"),
    (pa.array([b"\xff"], pa.binary()), None),
    (pa.array([None], pa.string()), None),
    (pa.array([float("nan")]), None),
    (pa.array([date(2024, 1, 1)]), None),
    (pa.array([["3"]]), "3"),
    (pa.array([["3", "4"]]), None),
    (pa.array([{"a": [{"b": None}]}]), None),
]


@pytest.mark.parametrize(("column", "answer"), VALUES, ids=[str(column.type) for column, _ in VALUES])
def test_no_type_of_a_parquet_column_crashes_the_reader(tmp_path, column, answer):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"problem": ["p"], "answer": column}), path)
    if answer is not None:
        assert read_problems(FileSource(path=path)).problems[0].answer == answer
        return
    with pytest.raises(DataError, match=r"rows.parquet:1"):
        read_problems(FileSource(path=path))
