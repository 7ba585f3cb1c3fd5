"""Kinds of wrong verdicts that users report in public, distilled: programs, tests and what is right."""

from pathlib import Path

import pytest
import yaml

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
        case {"stdin": text}:
            return CodeTests(kind="stdin", inputs=(text,), outputs=(case["stdout"],))
        case {"calls": pairs, "entry": name}:
            inputs, outputs = zip(*pairs, strict=True)
            return CodeTests(kind="call", inputs=inputs, outputs=outputs, entry_point=name)


@cases("tests_that_test_nothing.yaml")
def test_tests_are_run_as_their_authors_meant_or_pass_nobody(verifier, case):
    wrong, right = (verifier.judge(fenced(f"f = lambda x: {value}"), read_tests(case)) for value in ("99", "x + 1"))
    if case["is"] == "broken":
        assert [(v.label, v.reason) for v in (wrong, right)] == [("undecided", "broken tests")] * 2
    else:
        assert (wrong.score, wrong.reason, right.label) == (0.0, "wrong answer", "correct")
