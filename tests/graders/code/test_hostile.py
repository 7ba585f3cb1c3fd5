"""Programs that want the verdict without the answer: none may be correct - or undecided, which would pay, too."""

from pathlib import Path

import pytest

from priml.types import CodeTests
from sampling import SEED, tenth

EXPECTED = {x: (x * 7919 + 13) % 10007 for x in (3, 17, 256, 999)}
ASSERTS = tuple(f"assert f({x}) == {y}" for x, y in EXPECTED.items())
KINDS = {
    "call": CodeTests(
        kind="call", entry_point="f", inputs=tuple([x] for x in EXPECTED), outputs=tuple(EXPECTED.values())
    ),
    "assert_list": CodeTests(kind="assert_list", asserts=ASSERTS, entry_point="f"),
    "check": CodeTests(
        kind="check",
        entry_point="f",
        test="def check(candidate):\n" + "\n".join(f"    {line.replace('f(', 'candidate(')}" for line in ASSERTS),
    ),
    "script": CodeTests(
        kind="script",
        entry_point="f",
        test=f"import math\nfor x, y in {EXPECTED}.items():\n"
        "    assert f(x) == y and abs(f(x) - y) < 1e-9 and math.isclose(f(x), y)",
    ),
    "stdin": CodeTests(
        kind="stdin", inputs=tuple(f"{x}\n" for x in EXPECTED), outputs=tuple(f"{y}\n" for y in EXPECTED.values())
    ),
}

FIXTURES = Path(__file__).parent / "fixtures"


def programs(name):
    """By title."""
    sections = (FIXTURES / name).read_text().split("\n######## ")[1:]
    return dict(section.split("\n", maxsplit=1) for section in sections)


HOSTILE = programs("hostile.txt")
ENDLESS = programs("endless.txt")
HARMLESS = programs("harmless.txt")


def with_output(program, name):
    """For the stdin kind: what `f` gives, printed, as an honest program would."""
    return f"{program}\nprint({name}(int(input())))"


def judge(verifier, program, kind):
    text = with_output(program, "f") if kind == "stdin" else program
    return verifier.judge(f"```python\n{text}\n```", KINDS[kind])


def test_there_are_many_hostile_programs():
    assert len(HOSTILE) + len(ENDLESS) >= 60


CASES = [(title, kind) for title in HOSTILE | ENDLESS for kind in KINDS]


@pytest.mark.parametrize(
    ("title", "kind"), [pytest.param(*case, id=f"{'-'.join(case)} of sample {SEED}") for case in tenth(CASES)]
)
def test_a_hostile_program_is_wrong(impatient, title, kind):
    check_hostile(impatient, title, kind)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("title", "kind"), CASES)
def test_a_hostile_program_is_wrong_under_tests_of_every_kind(impatient, title, kind):
    check_hostile(impatient, title, kind)


def check_hostile(verifier, title, kind):
    verdict = judge(verifier, (HOSTILE | ENDLESS)[title], kind)
    assert (verdict.correct, verdict.score) == (False, 0.0), verdict


@pytest.mark.parametrize("title", HARMLESS)
def test_a_harmless_program_is_right(verifier, title):
    kinds = list(KINDS)
    kind = kinds[list(HARMLESS).index(title) % len(kinds)] if title != "shadowed builtins" else "call"
    verdict = judge(verifier, HARMLESS[title], kind)
    assert verdict.correct is True, (kind, verdict)


def test_a_harmless_program_may_end_itself(verifier):
    program = "x = int(input())\nprint((x * 7919 + 13) % 10007)\nexit()"
    assert verifier.judge(f"```python\n{program}\n```", KINDS["stdin"]).correct is True


ALL = CodeTests(
    kind="script", test="assert all(map(f, [1, 2, 3]))\nassert not any(map(f, []))\nassert [*map(f, [1])] == [True]"
)


def test_an_exception_of_the_program_does_not_end_a_loop_of_the_tests(verifier):
    verdict = verifier.judge("```python\ndef f(x): raise StopIteration\n```", ALL)
    assert verdict.score == pytest.approx(1 / 3)  # the second asks nothing of the program
    assert verdict.correct is False


@pytest.mark.parametrize(
    ("test", "program"),
    [
        (
            "assert f('abc').startswith('a')",
            "class S:\n    def startswith(self, *a): return True\ndef f(x): return S()",
        ),
        (
            "assert f('abc').startswith('a')",
            "class f:\n    def __init__(self, x): pass\n    def startswith(self, *a): return True",
        ),
        ("assert 3 in f(3)", "class C:\n    def __contains__(self, x): return True\ndef f(x): return C()"),
        ("assert f(3)", "class C: pass\ndef f(x): return C()"),
        ("assert len(f(3)) == 3", "class C:\n    def __len__(self): return 3\ndef f(x): return C()"),
        (
            "assert sorted(f([2, 1])) == [1, 2]",
            "class C:\n    def __iter__(self): return iter([1, 2])\ndef f(x): return C()",
        ),
        ("x = [2]\nassert f(x) == [y + 1 for y in x]", "def f(x):\n    x.clear()\n    return []"),
        (
            "import numpy as np\nassert np.allclose(f(3), [1., 2.])",
            "class C:\n    def __array__(self, *a): return [1., 2.]\ndef f(x): return C()",
        ),
    ],
)
def test_an_object_that_says_yes_to_everything_is_not_asked(verifier, test, program):
    assert verifier.judge(f"```python\n{program}\n```", CodeTests(kind="script", test=test)).correct is False
