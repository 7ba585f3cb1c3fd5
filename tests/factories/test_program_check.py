from priml.config.graders import CodeVerifier
from priml.factories.program_check import check_programs, stubs
from priml.types import CodeTests, Problem


def problem(name, solution=None, **tests):
    meta = {} if solution is None else {"canonical_solution": solution}
    return Problem(name, "Do it.", "", "s", "code", CodeTests(**tests), meta)


CALL = {"kind": "call", "inputs": ([1], [2]), "outputs": (2, 4), "entry_point": "f"}
ECHO = {"kind": "stdin", "inputs": ("1\n", "2\n"), "outputs": ("1\n", "2\n")}


def test_known_solutions_must_pass_and_stubs_must_not():
    rows = [
        problem("right", "def f(x):\n    return 2 * x", **CALL),
        problem("wrong", "def f(x):\n    return 3 * x", **CALL),
        problem("unknown", **ECHO),
        problem("weak", "def f(x):\n    return 0", kind="assert_list", asserts=("assert f(1) == 0",), entry_point="f"),
        problem("same output", "print(input())", kind="stdin", inputs=("0\n",), outputs=("0\n",)),
        Problem("maths", "1+1?", "2"),
    ]
    decisions = check_programs(rows, CodeVerifier())
    assert [(decision.is_kept, decision.reason) for decision in decisions] == [
        (True, ""),
        (False, "its own solution fails"),
        (True, "no known solution"),
        (False, "a stub passes its tests"),
        (False, "a stub passes its tests"),
        (True, ""),
    ]
    assert decisions[3].other == "def f(*args, **kwargs):\n    return 0"


def test_a_stub_has_the_name_that_the_tests_call():
    method = problem("m", kind="check", test="def check(c): ...", entry_point="Solution().solve")
    assert stubs(method)[0] == "class Solution:\n    def solve(*args, **kwargs):\n        return None"
    assert stubs(problem("p", kind="script", test="assert f(1)")) == ["pass"]
