import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.data.code_rows import NODES, USUAL_IMPORTS, code_tests
from priml.errors import DataError
from priml.types import CodeTests

DATA = Path(__file__).parents[3] / "shared" / "data"
STARTER = "class Solution:\n    def f(self, x: int) -> int:\n"


def test_standard_input():
    row = {"tests": {"kind": "stdin", "inputs": ["1\n"], "outputs": ["2\n"]}}
    assert code_tests(row) == CodeTests(kind="stdin", inputs=("1\n",), outputs=("2\n",))


def test_tests_may_be_json_text():
    row = {"tests": json.dumps({"kind": "stdin", "inputs": ["1"], "outputs": ["2"]})}
    assert code_tests(row) == CodeTests(kind="stdin", inputs=("1",), outputs=("2",))


def test_calls():
    tests = code_tests({"tests": {"kind": "call", "fn_name": "f", "inputs": [[1, [2]]], "outputs": [3]}})
    assert (tests.kind, tests.entry_point, tests.inputs, tests.outputs) == ("call", "f", ([1, [2]],), (3,))
    assert tests.setup == USUAL_IMPORTS + NODES


def test_outputs_that_are_all_wrapped_in_a_list_may_be_bare_except_for_leetcode():
    tests = {"kind": "call", "fn_name": "f", "inputs": [[1], [2]], "outputs": [[True], [False]]}
    assert code_tests({"tests": tests}).is_wrapped
    assert not code_tests({"tests": tests, "starter_code": STARTER}).is_wrapped
    assert not code_tests({"tests": tests | {"outputs": [[1], [1, 2]]}}).is_wrapped


def test_assert_lists():
    row = {
        "entry_point": "f",
        "tests": {"kind": "assert_list", "setup": "import math", "asserts": ["assert f(1) == 2"]},
    }
    expected = CodeTests(kind="assert_list", setup="import math", asserts=("assert f(1) == 2",), entry_point="f")
    assert code_tests(row) == expected


def test_a_check_with_the_beginning_of_the_function():
    row = {
        "prompt": 'def f(x):\n    """Next."""\n',
        "entry_point": "f",
        "tests": {"kind": "check", "test": "def check(c): ..."},
    }
    assert code_tests(row) == CodeTests(kind="check", test="def check(c): ...", entry_point="f", stub=row["prompt"])


def test_a_check_with_a_prelude():
    tests = {"kind": "check", "prelude": "import math", "test": "def check(c): ..."}
    row = {"prompt": "Next number.", "entry_point": "Solution().f", "tests": tests}
    expected = CodeTests(kind="check", setup="import math", test="def check(c): ...", entry_point="Solution().f")
    assert code_tests(row) == expected


def test_scripts():
    row = {"tests": {"kind": "script", "imports": ["import math"], "test": "assert f(1) == 2"}, "entry_point": "f"}
    assert code_tests(row) == CodeTests(kind="script", setup="import math", test="assert f(1) == 2", entry_point="f")
    leetcode = code_tests({"starter_code": STARTER, "tests": {"kind": "script", "test": "assert Solution().f(1) == 2"}})
    assert leetcode.setup == f"{USUAL_IMPORTS}\n{NODES}"


def eurus(**truth):
    return {
        "reward_model": {"ground_truth": json.dumps(truth), "style": "rule"},
        "prompt": [{"role": "user", "content": ""}],
    }


def test_eurus_rows():
    assert code_tests(eurus(inputs=["1"], outputs=["2"])) == CodeTests(kind="stdin", inputs=("1",), outputs=("2",))
    tests = code_tests(eurus(fn_name="f", inputs=['"a"\n[1, 2]', "3\nnull"], outputs=["true", "[1, 2]"]))
    assert (tests.kind, tests.entry_point) == ("call", "f")
    assert (tests.inputs, tests.outputs) == ((["a", [1, 2]], [3, None]), (True, [1, 2]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "no tests"),
        ({"tests": "{"}, "tests is not JSON"),
        ({"tests": {}}, "tests.kind is None"),
        ({"tests": {"kind": "unittest"}}, "tests.kind is 'unittest', needed one of"),
        (
            {"tests": {"kind": "stdin", "inputs": [], "outputs": []}},
            "inputs is \\[\\], needed a list that is not empty",
        ),
        ({"tests": {"kind": "stdin", "inputs": ["1"], "outputs": []}}, "outputs is \\[\\]"),
        ({"tests": {"kind": "stdin", "inputs": ["1"], "outputs": ["1", "2"]}}, "found 1 inputs and 2 outputs"),
        ({"tests": {"kind": "stdin", "inputs": [1], "outputs": ["1"]}}, "inputs\\[0\\] is 1, needed text"),
        ({"tests": {"kind": "call", "inputs": [[1]], "outputs": [1]}}, "fn_name is None"),
        ({"tests": {"kind": "call", "fn_name": "f", "inputs": [1], "outputs": [1]}}, "needed a list of arguments"),
        ({"tests": {"kind": "assert_list", "asserts": [" "]}}, "asserts\\[0\\] is ' '"),
        ({"tests": {"kind": "check", "test": "x"}}, "entry_point is missing"),
        ({"tests": {"kind": "check"}, "entry_point": "f"}, "test is None, needed text"),
        ({"tests": {"kind": "script", "test": "x"}, "entry_point": 3}, "entry_point is 3"),
        ({"tests": {"kind": "script", "test": "x", "imports": [1]}}, "imports is \\[1\\]"),
        ({"reward_model": {"ground_truth": "42"}}, "ground_truth is 42"),
        ({"reward_model": {"ground_truth": "\\frac"}}, "ground_truth is not JSON"),
        (eurus(fn_name="f", inputs=["a"], outputs=["1"]), "inputs\\[0\\] is not JSON"),
        (eurus(fn_name="f", inputs=["1"], outputs=["a"]), "outputs\\[0\\] is not JSON"),
    ],
)
def test_errors_name_what_is_wrong(row, message):
    with pytest.raises(DataError, match=message):
        code_tests(row)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["stdin", "call", "check", "script"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "tests", "inputs", "outputs", "fn_name", "test", "asserts", "entry_point", "prompt"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(["tests", "entry_point", "prompt", "starter_code"]), json_values))
def test_any_row_gives_tests_or_an_error_of_ours(row):
    with contextlib.suppress(DataError):
        assert isinstance(code_tests(row), CodeTests)


ROWS_BY_KIND = {
    "stdin": {"tests": {"kind": "stdin", "inputs": ["1\n"], "outputs": ["2\n"]}},
    "call": {"tests": {"kind": "call", "fn_name": "f", "inputs": [[1]], "outputs": [2]}},
    "assert_list": {"entry_point": "f", "tests": {"kind": "assert_list", "setup": "", "asserts": ["assert f(1) == 2"]}},
    "check": {"prompt": "def f(x):\n", "entry_point": "f", "tests": {"kind": "check", "test": "def check(c): ..."}},
    "script": {"entry_point": "f", "tests": {"kind": "script", "imports": [], "test": "assert f(1) == 2"}},
}


@pytest.mark.parametrize("kind", ROWS_BY_KIND)
def test_a_row_of_each_kind_is_read(kind):
    assert code_tests(ROWS_BY_KIND[kind]).kind == kind


@pytest.mark.parametrize("name", sorted(path.name for path in (DATA / "code").glob("*.jsonl*")) or ["none"])
def test_all_rows_of_the_public_sets_are_read(name):
    path = DATA / "code" / name
    if not path.is_file():
        pytest.skip(f"no programming data sets in {DATA}")
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        assert code_tests(row).kind == row["tests"]["kind"]


def test_all_programming_rows_in_the_eurus_schema_are_read():
    path = DATA / "rl" / "eurus_schema_sample.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {DATA}")
    with gzip.open(path, "rt") as file:
        rows = [row for row in map(json.loads, file) if row["ability"] == "code"]
    kinds = [code_tests(row).kind for row in rows]
    assert (kinds.count("call"), kinds.count("stdin")) == (300, 100)
