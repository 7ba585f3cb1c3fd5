"""Limits, endings and conversations, in the strongest sandbox there is and in none: they must not differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from priml.sandbox import Limits, ProgramEnded, Sandbox
from priml.sandbox.child import UnsafeSubprocess
from priml.sandbox.pool import LocalSandbox


@pytest.fixture(params=["isolated", "unsafe"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "unsafe":
        yield UnsafeSubprocess()
    else:
        strongest: LocalSandbox = request.getfixturevalue("strongest")
        yield strongest


ECHO = "while True: reply(receive()[::-1])"


def test_a_program_reads_its_input_and_its_output_comes_back(sandbox: Sandbox):
    result = sandbox.run(
        "import sys\nprint(input())\nprint(len(sys.stdin.read()), file=sys.stderr)", stdin="é\n" + "x" * 200_000
    )
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("finished", 0, "é\n", "200000\n")
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("", 0), ("raise SystemExit", 0), ("exit(3)", 3), ("exit('why')", 1), ("1 / 0", 1), ("x = (", 1)],
)
def test_exit_codes_are_those_of_python(sandbox: Sandbox, code: str, exit_code: int):
    result = sandbox.run(code)
    assert (result.status, result.exit_code) == ("finished", exit_code)


def test_too_long_is_a_time_limit_by_either_clock(sandbox: Sandbox):
    assert sandbox.run("import time; time.sleep(99)", limits=Limits(wall_s=0.3)).status == "time limit"
    assert sandbox.run("while True: pass", limits=Limits(wall_s=60, cpu_s=1)).status == "time limit"


def test_what_was_said_before_a_limit_is_kept(sandbox: Sandbox):
    code = "import time; print('so far', flush=True); time.sleep(99)"
    for wall_s in (1.0, 10.0, 60.0):  # on a busy machine it takes its time to start
        result = sandbox.run(code, limits=Limits(wall_s=wall_s))
        if result.stdout:
            break
    assert (result.stdout, result.exit_code) == ("so far\n", None)


def test_too_much_memory_is_a_memory_limit_on_top_of_what_the_interpreter_takes(sandbox: Sandbox):
    limits = Limits(memory_mib=64)
    assert sandbox.run("x = bytearray(32 << 20)", limits=limits).status == "finished"
    assert sandbox.run("x = bytearray(96 << 20)", limits=limits).status == "memory limit"


def test_output_is_cut_at_the_limit_and_the_program_ended(sandbox: Sandbox):
    result = sandbox.run("while True: print('x' * 99)", limits=Limits(output_bytes=5000))
    assert (result.status, len(result.stdout)) == ("output limit", 5000)
    assert sandbox.run("print('x' * 4999, end='')", limits=Limits(output_bytes=5000)).status == "finished"


def test_a_deadly_signal_is_a_crash(sandbox: Sandbox):
    result = sandbox.run("import ctypes; ctypes.string_at(0)")
    assert (result.status, result.exit_code) == ("crash", -11)


def test_text_that_is_no_unicode_fails_as_a_program_and_not_as_a_sandbox(sandbox: Sandbox):
    assert sandbox.run("print('\ud800')").exit_code == 1
    assert sandbox.run("print(len(input()))", stdin="\ud800").stdout.strip().isdigit()


def test_a_conversation_goes_back_and_forth(sandbox: Sandbox):
    with sandbox.open(ECHO) as session:
        assert session.ask(b"abc") == b"cba"
        assert session.ask(b"") == b""
        assert len(session.ask(b"x" * 900_000)) == 900_000


def test_the_last_words_of_a_program_count(sandbox: Sandbox):
    with sandbox.open("receive(); reply(b'z' * 300000); import os; os._exit(3)") as session:
        assert session.ask(b"") == b"z" * 300_000
        with pytest.raises(ProgramEnded) as over:
            session.ask(b"")
        assert over.value.result.exit_code == 3


def test_a_program_that_fails_before_it_replies_is_over_and_stays_over(sandbox: Sandbox):
    with sandbox.open("print('here')\n1 / 0") as session:
        for _ in range(2):
            with pytest.raises(ProgramEnded) as over:
                session.ask(b"")
            assert over.value.result.stdout == "here\n"
            assert "ZeroDivisionError" in over.value.result.stderr


def test_a_reply_that_takes_too_long_is_a_time_limit_and_each_has_its_own(sandbox: Sandbox):
    code = "import time\nwhile True:\n  time.sleep(float(receive())); reply(b'')"
    with sandbox.open(code, limits=Limits(wall_s=20)) as session:
        session.ask(b"0.3", wall_s=20)
        with pytest.raises(ProgramEnded) as over:
            session.ask(b"60", wall_s=0.2)
        assert over.value.result.status == "time limit"


def test_a_reply_that_is_too_long_is_an_output_limit(sandbox: Sandbox):
    with sandbox.open("receive(); reply(b'z' * 5000)", limits=Limits(output_bytes=4000)) as session:
        with pytest.raises(ProgramEnded) as over:
            session.ask(b"")
        assert over.value.result.status == "output limit"


@pytest.mark.parametrize(
    ("lie", "status"),
    [("b'\\x7f\\0\\0\\0x'", "output limit"), ("b'\\0\\0\\0\\2x'", "time limit"), ("b'xy'", "time limit")],
)
def test_a_length_that_lies_ends_in_a_limit_not_in_a_hang(sandbox: Sandbox, lie: str, status: str):
    code = f"import os, time\nreceive(); os.write(reply.__closure__[0].cell_contents, {lie}); time.sleep(99)"
    with sandbox.open(code, limits=Limits(wall_s=1.0 if status == "time limit" else 60.0)) as session:
        with pytest.raises(ProgramEnded) as over:
            session.ask(b"")
        assert over.value.result.status == status


def test_a_channel_that_the_program_closes_ends_in_its_own_end(sandbox: Sandbox):
    code = "import os; os.close(reply.__closure__[0].cell_contents); print('bye')"
    with sandbox.open(code) as session:
        with pytest.raises(ProgramEnded) as over:
            session.ask(b"x" * 500_000)
        assert over.value.result.stdout == "bye\n"


def test_a_closed_session_has_ended_its_program_and_says_so(sandbox: Sandbox):
    session = sandbox.open("while True: pass")
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.ask(b"")


def test_a_program_that_waits_is_told_when_the_session_is_closed(sandbox: Sandbox):
    with sandbox.open("receive()") as session, pytest.raises(ProgramEnded):
        session.ask(b"", wall_s=20)  # it reads this one, and ends


def test_limits_must_mean_something():
    with pytest.raises(AssertionError, match="memory_mib"):
        Limits(memory_mib=0)
