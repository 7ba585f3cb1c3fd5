"""Kinds of wrong verdicts that users report in public, distilled: programs, tests and what is right."""

from pathlib import Path

import pytest
import yaml

from priml.data.code_rows import code_tests
from priml.graders.code import CodeVerifier
from priml.types import CodeTests

FIXTURES = Path(__file__).parent / "fixtures"


def cases(name):
    rows = yaml.safe_load((FIXTURES / name).read_text())
    return pytest.mark.parametrize("case", [pytest.param(row, id=row["name"].replace(" ", "-")) for row in rows])


def fenced(program):
    return f"```python\n{program}\n```"


def read_tests(case):
    match case:
        case {"script": text}:
            return CodeTests(kind="script", test=text)
        case {"asserts": texts}:
            return CodeTests(kind="assert_list", asserts=tuple(texts))
        case {"check": text}:
            return CodeTests(kind="check", test=text, entry_point=case.get("entry", "f"))


@cases("tests_that_test_nothing.yaml")
def test_tests_are_run_as_their_authors_meant_or_pass_nobody(verifier, case):
    wrong, right = (verifier.judge(fenced(f"f = lambda x: {value}"), read_tests(case)) for value in ("99", "x + 1"))
    if case["is"] == "broken":
        assert [(v.label, v.reason) for v in (wrong, right)] == [("undecided", "broken tests")] * 2
    else:
        assert (wrong.label, wrong.reason, right.label) == ("wrong", "wrong answer", "correct")


@cases("classes.yaml")
def test_instances_of_classes_are_graded_as_in_one_interpreter(verifier, case):
    for is_right in (True, False):
        for text in case["right" if is_right else "wrong"]:
            verdict = verifier.judge(fenced(case["program"]), CodeTests(kind="assert_list", asserts=(text,)))
            assert (verdict.correct is True) == is_right, (text, verdict)


def test_a_class_may_be_the_candidate_of_a_check(verifier):
    program = "class Stack:\n    def __init__(self): self.s = []\n    def push(self, x): self.s.append(x)\n"
    test = "def check(candidate):\n    s = candidate()\n    s.push(1)\n    assert s.s == [1]"
    tests = CodeTests(kind="check", test=test, entry_point="Stack")
    assert verifier.judge(fenced(program), tests).correct is True
    assert verifier.judge(fenced(program.replace("append(x)", "append(2)")), tests).correct is False


@cases("calls.yaml")
def test_functions_are_called_as_data_sets_mean_it(verifier, case):
    name = case.get("entry", "f")
    tests = {"kind": "call", "fn_name": name, "inputs": case["inputs"], "outputs": case["outputs"]}
    verdict = verifier.judge(fenced(case["program"]), code_tests({"tests": tests, **case.get("row", {})}))
    assert (verdict.correct is True) == case["is"], verdict


@cases("threads.yaml")
def test_what_public_threads_report_is_right_here(sandbox, case):
    verifier = CodeVerifier(sandbox, bare_programs=case.get("bare", False), compare_tokens=case.get("tokens", False))
    response = case.get("response") or fenced(case["program"])
    verdict = verifier.judge(response, code_tests({"tests": case["tests"]}))
    assert verdict.correct is case["is"], verdict
