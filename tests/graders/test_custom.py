import gc
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from priml.errors import RunError, UsageError
from priml.graders import custom
from priml.graders.custom import CustomVerifier
from priml.graders.pool import VerifierPool, fan_out
from priml.types import Group, Problem, Prompt, Trajectory

PROBLEM = Problem(id="p", prompt="3+4", answer="7")
JUDGE = """
import asyncio, ctypes, os, re, signal, sys, time

async def asynchronous(problem, response):
    if response == "blocks":
        time.sleep(3600)
    await asyncio.sleep(3600 if response == "hangs" else 0)
    return response == problem.answer

def plain(problem, response):
    if response.startswith("run "):
        exec(response[4:])
    return response == problem.answer
"""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def judge(tmp_path):
    """`judge(name)` is the verifier around a function of JUDGE."""
    (tmp_path / "judge.py").write_text(JUDGE)
    made = []

    def make(name="plain", **limits):
        made.append(CustomVerifier(f"{tmp_path / 'judge.py'}:{name}", **limits))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


@pytest.mark.parametrize("name", ["plain", "asynchronous"])
def test_the_function_sees_the_problem_and_the_response(judge, name):
    verifier = judge(name)
    assert fan_out(lambda response: verifier.grade(PROBLEM, response).correct, ["7", "8"] * 20) == [True, False] * 20


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("sys.exit(0)", "SystemExit in <string>, line 1"),
        ("os._exit(0)", "exit code 0 in judge.py:plain"),
        ("ctypes.string_at(0)", "SIGSEGV in <string>, line 1"),
        slow("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL in judge.py:plain"),
        slow("raise KeyboardInterrupt", "KeyboardInterrupt in <string>, line 1"),
        slow("[][1]", "IndexError in <string>, line 1"),
        ("bytearray(64 << 30)", "MemoryError in <string>, line 1"),
    ],
)
def test_what_ends_the_function_or_its_process_decides_nothing_and_the_next_call_is_answered(judge, does, reason):
    verifier = judge()
    verdict = verifier.grade(PROBLEM, f"run {does}")
    assert (verdict.label, verdict.reason) == ("undecided", reason)
    assert verifier.grade(PROBLEM, "7").correct is True


@pytest.mark.parametrize(
    "does",
    [
        "time.sleep(3600)",
        slow("while True: pass"),
        slow("re.match('(a+)+$', 'a' * 60 + 'b')"),
    ],
)
def test_a_call_that_never_ends_is_ended_and_its_line_is_named(judge, does):
    verifier = judge(limit_s=0.5)
    assert verifier.grade(PROBLEM, f"run {does}").reason == "time limit in <string>, line 1"


def test_an_asynchronous_call_that_hangs_ends_alone(judge):
    verifier = judge("asynchronous", limit_s=1)
    pid = verifier.pid
    assert verifier.grade(PROBLEM, "hangs").reason == "time limit"
    assert verifier.pid == pid
    assert verifier.grade(PROBLEM, "blocks").reason == "time limit in judge.py, line 6"


def test_what_it_prints_is_not_ours(judge, capfd):
    judge().grade(PROBLEM, "run os.write(1, b'out'); os.write(2, b'err'); print('printed', flush=True)")
    assert capfd.readouterr() == ("", "")


def test_a_function_that_always_dies_ends_the_run_with_the_last_cause(judge, monkeypatch):
    monkeypatch.setattr(custom, "_MAX_DEATHS", 3)
    verifier = judge()
    with pytest.raises(RunError, match=r"ended 3 times without a verdict in between, .*: exit code 3 in judge\.py"):
        fan_out(lambda response: verifier.grade(PROBLEM, response), ["run os._exit(3)"] * 20)


def test_a_result_that_is_no_verdict_is_refused(tmp_path):
    (tmp_path / "bad.py").write_text("def grade(problem, response): return float('nan')")
    with pytest.raises(UsageError, match=r"bad\.py:grade returned nan \(float\); it must return"):
        CustomVerifier(f"{tmp_path / 'bad.py'}:grade").grade(PROBLEM, "7")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("def grade(:", "SyntaxError: invalid syntax"),
        slow("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "exit code 0"),
        slow("import ctypes; ctypes.string_at(0)", "SIGSEGV in judge.py, line 1"),
        slow("x = bytearray(64 << 30)", "MemoryError"),
        slow("def other(problem, response): ...", "has no function 'grade'"),
        ("def grade(response): ...", "cannot be called with"),
    ],
)
def test_a_function_that_cannot_be_imported_is_refused(tmp_path, text, said):
    (tmp_path / "judge.py").write_text(text)
    with pytest.raises(UsageError, match=r"^verify\.function") as error:
        CustomVerifier(f"{tmp_path / 'judge.py'}:grade")
    assert said in str(error.value)


def test_columns_that_cannot_be_sent_are_named_with_their_problem(judge):
    with pytest.raises(UsageError, match="problem 'p': found columns that cannot be sent"):
        judge().grade(Problem("p", "?", "7", meta={"f": lambda: 0}), "7")


def is_gone(pid):
    for _ in range(6000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_its_process_ends_with_the_verifier_and_with_us(judge):
    verifier = judge()
    verifier.close()
    assert is_gone(verifier.pid)
    read, write = os.pipe()
    ours = os.fork()
    if ours == 0:
        mine = judge()
        os.write(write, str(mine.pid).encode())
        mine.grade(PROBLEM, "run re.match('(a+)+$', 'a' * 60 + 'b')")  # holds the interpreter's lock
    pid = int(os.read(read, 20))
    time.sleep(0.3)
    os.kill(ours, signal.SIGKILL)
    os.waitpid(ours, 0)
    assert is_gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can promise it")
@pytest.mark.parametrize("dies", ["the trainer", "the process"])
def test_what_the_function_started_ends_with_its_process_whoever_is_killed(judge, tmp_path, dies):
    said = tmp_path / "pid"
    start = f"run import subprocess; open({str(said)!r}, 'w').write(str(subprocess.Popen(['sleep', '3600']).pid) + '.')"
    read, write = os.pipe()
    ours = os.fork()
    if ours == 0:
        mine = judge()
        mine.grade(PROBLEM, start)
        os.write(write, str(mine.pid).encode())
        time.sleep(3600)
    process = int(os.read(read, 20))
    os.kill(ours if dies == "the trainer" else process, signal.SIGKILL)
    assert is_gone(int(said.read_text().rstrip(".")))
    if dies != "the trainer":
        os.kill(ours, signal.SIGKILL)
    os.waitpid(ours, 0)


def test_a_pool_asks_again_after_a_death(judge, tmp_path):
    once = f"run import os; p = {str(tmp_path / 'once')!r}; os.path.exists(p) or (open(p, 'w'), os._exit(1))"
    group = Group(Prompt(PROBLEM, "?", ()), (Trajectory((), once, "stop", 0),))
    assert VerifierPool(judge())([group])[0].verdicts[0].label == "wrong"
    assert Path(tmp_path / "once").exists()
    gc.collect()


def test_its_state_is_kept_between_calls_and_it_may_use_signals_and_loops(tmp_path):
    (tmp_path / "state.py").write_text(
        "import asyncio, signal\ncalls = []\n"
        "def grade(problem, response):\n"
        "    signal.alarm(0)\n"
        "    asyncio.run(asyncio.sleep(0))\n"
        "    calls.append(response)\n"
        "    return len(calls) / 4\n"
    )
    verifier = CustomVerifier(f"{tmp_path / 'state.py'}:grade")
    assert [verifier.grade(PROBLEM, "?").score for _ in range(4)] == [0.25, 0.5, 0.75, 1.0]
