from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from priml.sandbox import Limits, Sandbox, SandboxLost, SandboxUnavailable
from priml.sandbox.gvisor import GvisorSandbox

from .conftest import open_level

PATIENT = Limits(wall_s=60)


@pytest.fixture(scope="module")
def gvisor() -> Iterator[Sandbox]:
    sandbox = open_level("gvisor")
    yield sandbox
    sandbox.close()


def containers(parent: int) -> list[int]:
    """Processes of `runsc` that a process has started."""
    children = [
        child for tasks in Path(f"/proc/{parent}/task").glob("*/children") for child in tasks.read_text().split()
    ]
    return [int(child) for child in children if b"runsc" in Path(f"/proc/{child}/cmdline").read_bytes()]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_runsc_it_refuses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="gVisor is not installed"):
        GvisorSandbox()


def test_a_program_runs_on_a_kernel_that_is_not_the_machines(gvisor: Sandbox):
    result = gvisor.run("import os\nprint(os.getuid(), os.getpid(), os.uname().release)", limits=PATIENT)
    assert result.stdout.startswith("65534 1 ")
    assert os.uname().release not in result.stdout


@pytest.mark.parametrize("code", [1, 125, 127, 128])
def test_no_exit_code_of_a_program_passes_for_a_failure_of_ours(gvisor: Sandbox, code: int):
    result = gvisor.run(f"import os; os._exit({code})", limits=PATIENT)
    assert (result.status, result.exit_code, result.stderr) == ("finished", code, "")


def test_a_signal_is_a_crash_and_processor_time_has_a_limit(gvisor: Sandbox):
    assert gvisor.run("import ctypes; ctypes.string_at(0)", limits=PATIENT).status == "crash"
    assert gvisor.run("while True: pass", limits=Limits(wall_s=60, cpu_s=4)).status == "time limit"


def test_a_conversation_goes_back_and_forth(gvisor: Sandbox):
    with gvisor.open("print('heard')\nwhile True: reply(receive()[::-1])", limits=PATIENT) as session:
        assert session.ask(b"abc") == b"cba"
        assert session.ask(b"x" * 100_000) == b"x" * 100_000


def test_a_container_that_is_killed_under_its_program_is_our_loss_and_the_next_is_served(gvisor: Sandbox):
    with gvisor.open("reply(receive())\nreceive()", limits=PATIENT) as session:
        session.ask(b"")
        for pid in containers(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxLost):
            session.ask(b"")
    assert gvisor.run("print(1)", limits=PATIENT).stdout == "1\n"


def test_a_container_that_does_not_start_is_our_loss(monkeypatch: pytest.MonkeyPatch):
    sandbox = open_level("gvisor")
    assert isinstance(sandbox, GvisorSandbox)
    monkeypatch.setattr(sandbox, "_spec", lambda start, limits: {})
    with pytest.raises(SandboxLost, match="was not started"):
        sandbox.run("print(1)", limits=PATIENT)
    sandbox.close()


def test_a_container_dies_with_a_trainer_that_is_killed():
    open_level("gvisor").close()
    script = """
import threading
from priml.sandbox.choose import LEVELS
opened = []
def start():
    sandbox = LEVELS["gvisor"](1)
    opened.append((sandbox, sandbox.open("reply(receive())\\nimport time; time.sleep(600)")))
    opened[0][1].ask(b"", wall_s=60)
thread = threading.Thread(target=start); thread.start(); thread.join()  # the thread that asked is gone; they live on
print("on", flush=True)
input()
"""
    trainer = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "on\n"
    started = containers(trainer.pid)
    assert started
    trainer.kill()
    trainer.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
