import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from priml.errors import DataError
from priml.graders.code import CodeVerifier, grade, grade_many
from priml.graders.pool import fan_out
from priml.sandbox import Limits, ProgramEnded, Sandbox, SandboxLost, SandboxResult, open_sandbox
from priml.types import CodeTests, Problem

DOUBLE = CodeTests(kind="call", entry_point="double", inputs=([1], [2], [5], [-3]), outputs=(2, 4, 10, -6))
ECHO = CodeTests(kind="stdin", inputs=("1\n", "2\n"), outputs=("1\n", "2\n"))


def fenced(program):
    return f"So:\n```python\n{program}\n```"


def double(body):
    return fenced(f"def double(x):\n    {body}")


@pytest.mark.parametrize(
    ("response", "label", "score", "reason"),
    [
        (double("return 2 * x"), "correct", 1.0, "passed"),
        (double("return x * x"), "wrong", 0.25, "wrong answer"),
        (double("return 2 * x if x > 0 else None"), "wrong", 0.75, "wrong answer"),
        (double("return str(2 * x)"), "wrong", 0.0, "wrong answer"),
        (double("return x + None"), "wrong", 0.0, "exception: TypeError"),
        (double("raise type('Mine', (KeyError,), {})('x')"), "wrong", 0.0, "exception: KeyError"),
        (double("return 2 * x if x < 5 else 1 / 0"), "wrong", 0.75, "exception: ZeroDivisionError"),
        (double("return 2 * x if x != 2 else __import__('os')._exit(0)"), "wrong", 0.75, "crash"),
        (double("return 2 *"), "wrong", 0.0, "exception: SyntaxError"),
        (fenced("def triple(x): return 3 * x"), "wrong", 0.0, "exception: NameError"),
        (fenced("class Solution:\n    def double(self, x): return 2 * x"), "correct", 1.0, "passed"),
        ("def double(x): return 2 * x", "wrong", 0.0, "no answer"),
        (fenced("#" * 100_001), "wrong", 0.0, "too long"),
    ],
)
def test_verdicts(verifier, response, label, score, reason):
    verdict = verifier.judge(response, DOUBLE)
    assert (verdict.label, verdict.score, verdict.reason) == (label, score, reason)


def test_the_verdict_carries_the_program(verifier):
    assert verifier.judge(double("return 0"), DOUBLE).answer == "def double(x):\n    return 0\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "time limit"),
        ("__import__('time').sleep(60)", "time limit"),
        ("return 'x' * (1 << 33)", "memory limit"),
        ("return 'x' * (3 << 20)", "output limit"),
        ("print('x' * (1 << 25)); return 2 * x", "output limit"),
        ("__import__('os').abort()", "crash"),
    ],
)
def test_limits_are_reasons(impatient, bounded, body, reason):
    verifier = impatient if reason == "time limit" else bounded
    assert verifier.judge(double(body), DOUBLE).reason == reason


def test_a_test_that_ends_the_program_costs_only_itself(sandbox):
    verifier = CodeVerifier(sandbox, limits=Limits(wall_s=8, cpu_s=3))
    verdict = verifier.judge(double("while x == 2: pass\n    return 2 * x"), DOUBLE)
    assert (verdict.score, verdict.reason) == (0.75, "time limit")


def test_all_or_nothing(sandbox):
    verdict = CodeVerifier(sandbox, all_or_nothing=True).judge(double("return x * x"), DOUBLE)
    assert (verdict.correct, verdict.score) == (False, 0.0)


def test_after_an_early_stop_the_other_tests_have_failed(sandbox):
    verifier = CodeVerifier(sandbox, stop_early=True)
    assert verifier.judge(double("return 2 * x if x != 2 else 0"), DOUBLE).score == 0.25
    assert verifier.judge(double("return 2 * x"), DOUBLE).correct is True


def test_standard_output_is_compared(verifier):
    assert verifier.judge(fenced("print(input())"), ECHO).correct is True
    assert verifier.judge(fenced("if __name__ == '__main__':\n    print(input(), end='')"), ECHO).correct is True
    verdict = verifier.judge(fenced("print(1)"), ECHO)
    assert (verdict.score, verdict.reason) == (0.5, "wrong answer")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(input()); 1 / 0", "exception: ZeroDivisionError"),
        ("print(input()); raise SystemExit(1)", "crash"),
        ("print(input()); __import__('os').abort()", "crash"),
        ("print(int(input()) + int(input()))", "exception: EOFError"),
        ("x = bytearray(1 << 40)", "memory limit"),
        ("print('x' * (1 << 22))", "output limit"),
        ("while True: pass", "time limit"),
        ("print(", "exception: SyntaxError"),
    ],
)
def test_a_program_must_also_end_well(bounded, program, reason):
    assert bounded.judge(fenced(program), ECHO).reason == reason


def test_the_authors_rules_compare_leniently_and_take_programs_without_a_fence(sandbox):
    authors = CodeVerifier(sandbox, rules="authors")
    pair = CodeTests(kind="stdin", inputs=("",), outputs=("1 2\n",))
    assert authors.judge("print('2 1')", pair).correct is True
    assert authors.judge("print('2 3')", pair).correct is False


def test_bare_programs_count_where_they_are_allowed(sandbox, verifier):
    assert verifier.judge("print(input())", ECHO).reason == "no answer"
    assert CodeVerifier(sandbox, bare_programs=True).judge("print(input())", ECHO).correct is True


def test_a_problem_without_tests_is_an_error_in_the_data(verifier):
    with pytest.raises(DataError, match=r"'p1'.*no tests"):
        verifier.grade(Problem(id="p1", prompt="", answer="", kind="code"), double("return 2 * x"))
    problem = Problem(id="p1", prompt="", answer="", kind="code", tests=DOUBLE)
    assert verifier.grade(problem, double("return 2 * x")).correct is True


def test_tests_that_cannot_run_decide_nothing(verifier):
    for tests in (
        CodeTests(kind="script", test="assert double(2) =="),
        CodeTests(kind="script", test="import no_such_package\nassert double(2) == 4"),
        CodeTests(kind="check", test="assert True", entry_point="double"),
        CodeTests(kind="call", entry_point="double"),
        CodeTests(kind="call", entry_point="double", inputs=([object()],), outputs=(1,)),
    ):
        verdict = verifier.judge(double("return 2 * x"), tests)
        assert (verdict.label, verdict.reason) == ("undecided", "broken tests")


class Breaking:
    """A sandbox that is lost the first few times."""

    level = "breaking"

    def __init__(self, sandbox: Sandbox, *, times: int) -> None:
        self._sandbox = sandbox
        self._times = times

    def run(self, code, *, stdin="", limits=Limits()) -> SandboxResult:  # noqa: B008
        self._break()
        return self._sandbox.run(code, stdin=stdin, limits=limits)

    def open(self, code, *, limits=Limits(), upcoming=None):  # noqa: B008
        self._break()
        return self._sandbox.open(code, limits=limits, upcoming=upcoming)

    def close(self) -> None: ...

    def _break(self) -> None:
        self._times -= 1
        if self._times >= 0:
            raise SandboxLost("broken on purpose")


@pytest.mark.parametrize("tests", [DOUBLE, ECHO])
def test_a_lost_sandbox_is_retried_once_and_then_undecided(sandbox, tests):
    response = fenced("def double(x): return 2 * x\nif __name__ == '__main__': print(input())")
    assert CodeVerifier(Breaking(sandbox, times=1)).judge(response, tests).correct is True
    verdict = CodeVerifier(Breaking(sandbox, times=2)).judge(response, tests)
    assert (verdict.label, verdict.reason) == ("undecided", "worker lost")


@pytest.fixture
def own_sandbox(sandbox):
    """One whose workers may be killed."""
    own = open_sandbox("auto", workers=1)
    yield own
    own.close()


@contextmanager
def killing_workers(sandbox, *, first_only):
    over = threading.Event()

    def kill():
        seen = set()
        while not over.wait(0.3):
            for pid in sandbox.worker_pids:
                if pid not in seen and not (first_only and seen):
                    os.kill(pid, signal.SIGKILL)
                seen.add(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


SLOW = fenced("import time\ntime.sleep(1)\ndef double(x): return 2 * x\nif __name__ == '__main__': print(input())")


@pytest.mark.parametrize("tests", [DOUBLE, ECHO], ids=["call", "stdin"])
def test_killing_workers_in_the_middle_makes_a_program_undecided_not_wrong(own_sandbox, tests):
    with killing_workers(own_sandbox, first_only=False):
        verdict = CodeVerifier(own_sandbox).judge(SLOW, tests)
    assert (verdict.label, verdict.reason) == ("undecided", "worker lost")


def test_after_a_killed_worker_the_next_grading_is_as_ever(own_sandbox):
    with killing_workers(own_sandbox, first_only=True):
        assert CodeVerifier(own_sandbox).judge(SLOW, DOUBLE).correct is not False
    assert CodeVerifier(own_sandbox).judge(SLOW, DOUBLE).correct is True


def test_many_are_graded_at_once_in_their_order(sandbox):
    items = [(double(f"return 2 * x if x != {k} else 0"), DOUBLE) for k in (1, 7, 2, 8)]
    assert [verdict.score for verdict in grade_many(items)] == [0.75, 1.0, 0.75, 1.0]
    assert grade(*items[1]).correct is True


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_ten_thousand_gradings_leave_nothing_behind(verifier):
    program = fenced("def double(x): return 2 * x\nif __name__ == '__main__': print(input())")
    asserts = CodeTests(kind="assert_list", asserts=("assert double(2) == 4",))

    def leftovers():
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return len(children), len(os.listdir("/proc/self/fd"))

    def grade_some(count):
        cases = [(program, (DOUBLE, ECHO, asserts)[k % 3]) for k in range(count)]
        assert all(verdict.correct for verdict in fan_out(lambda case: verifier.judge(*case), cases))

    grade_some(500)
    before, memory = leftovers(), resident_mib()
    grade_some(9_500)
    assert leftovers() == before
    assert threading.active_count() < 50  # the pool's own come and go
    assert resident_mib() < memory + 30


pieces = st.sampled_from(
    [
        "def double(x):",
        "    return 2 * x",
        "    return",
        "x = 1",
        "import os",
        "```",
        "```python",
        "<think>",
        "</think>",
        "raise",
        "\x00",
        "\ud800",
        "é",
        "(",
        "    yield x",
        "async def double(x): return 2",
        "exit()",
        "\\",
        "'''",
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(response=st.lists(pieces, max_size=8).map("\n".join))
@pytest.mark.parametrize("tests", [DOUBLE, ECHO], ids=["call", "stdin"])
def test_any_response_gets_a_verdict(impatient, response, tests):
    verdict = impatient.judge(f"```python\n{response}\n```", tests)
    assert verdict.correct is not None
    assert verdict.correct is False or "return 2 * x" in response


def test_program_over_is_not_an_error_of_ours():
    assert not issubclass(ProgramEnded, SandboxLost)
