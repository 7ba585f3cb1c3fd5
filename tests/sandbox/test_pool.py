"""Many programs, one after another and at once; workers that are lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from priml.sandbox import SandboxLost
from priml.sandbox.pool import LocalSandbox

from .conftest import is_running, open_level


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def resident_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


@pytest.fixture
def own() -> LocalSandbox:
    sandbox = open_level("bubblewrap", workers=2)
    assert isinstance(sandbox, LocalSandbox)
    return sandbox


def test_programs_of_many_threads_do_not_mix(strongest: LocalSandbox):
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: strongest.run("print(input())", stdin=str(n)), range(40)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(40)]


def test_a_thread_may_hold_more_sessions_than_there_are_workers(strongest: LocalSandbox):
    sessions = [strongest.open("while True: reply(receive())") for _ in range(5)]
    for number, session in enumerate(sessions):
        assert session.ask(str(number).encode()) == str(number).encode()
    for session in sessions:
        session.close()


def test_numpy_and_sympy_are_there_already(strongest: LocalSandbox):
    code = "import sys; print('numpy' in sys.modules, 'sympy' in sys.modules)\nimport numpy, sympy\n"
    code += "print(numpy.linalg.inv(numpy.eye(2))[0, 0], sympy.factor('x**2 - 1'))"
    assert strongest.run(code).stdout == "True True\n1.0 (x - 1)*(x + 1)\n"
    light = strongest.run("import sys; print(len([name for name in sys.modules if name.startswith('num' + 'py')]))")
    assert light.stdout == "0\n"
    with strongest.open("import sys; receive(); reply(repr('numpy' in sys.modules).encode())") as session:
        assert session.ask(b"") == b"True"  # what it will run is not known, so it might want it
    with strongest.open(
        "import sys; receive(); reply(repr('num' + 'py' in sys.modules).encode())", upcoming="1"
    ) as session:
        assert session.ask(b"") == b"False"


def gone(pids: list[int]) -> None:
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def dead(pids: list[int]) -> None:
    """Who was killed is so when it is next its turn, and may still be waited for."""
    until(lambda: not any(is_running(pid) for pid in pids))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.01)


@pytest.mark.parametrize("victim", ["wall", "zygotes"])
def test_a_worker_killed_under_a_program_is_our_loss_and_the_next_program_is_served(own: LocalSandbox, victim: str):
    with own.open("receive(); reply(b'on'); receive(); import time; time.sleep(99)") as session:
        session.ask(b"")
        below = [pid for worker in own.worker_pids for pid in (worker, *descendants(worker))]
        for pid in own.worker_pids if victim == "wall" else below:
            with contextlib.suppress(ProcessLookupError):  # it went with the one before
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxLost):
            session.ask(b"", wall_s=60)
    dead(below)
    assert own.run("print(1)").stdout == "1\n"
    gone(below)
    own.close()


def test_a_worker_lost_while_idle_is_nobodys_loss(own: LocalSandbox):
    own.run("import numpy")
    below = [pid for worker in own.worker_pids for pid in descendants(worker)]
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gone(below)
    assert own.run("print(1)").stdout == "1\n"
    own.close()


def test_closing_leaves_no_process(own: LocalSandbox):
    own.run("import numpy")
    session = own.open("while True: pass")
    below = [pid for worker in own.worker_pids for pid in (worker, *descendants(worker))]
    assert len(below) > 2
    own.close()
    session.close()
    gone(below)


def test_all_die_with_a_trainer_that_is_killed_and_ctrl_c_is_not_for_them():
    open_level("bubblewrap").close()
    script = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell is born ignoring it
from priml.sandbox.choose import LEVELS
opened = []
def start():
    sandbox = LEVELS["bubblewrap"](1)
    opened.append((sandbox, sandbox.open("while True: pass")))
thread = threading.Thread(target=start); thread.start(); thread.join()  # the thread that asked is gone; they live on
try:
    print(opened[0][0].worker_pids[0], flush=True)
    input()
except KeyboardInterrupt: pass
print(opened[0][0].run("print('served')").stdout, flush=True)
input()
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    below = [worker, *descendants(worker)]
    os.killpg(trainer.pid, signal.SIGINT)  # as the terminal does
    assert trainer.stdout.readline() == "served\n"
    trainer.kill()
    trainer.wait()
    gone(below)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_ten_thousand_programs_leave_no_process_no_file_and_no_memory(own: LocalSandbox, tmp_path: Path):
    codes = [
        "print(1)",
        "open('f', 'w').write('x' * 1000)",
        "import os\nfor _ in range(3): os.fork()",
        "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "x = bytearray(1 << 24)",
        "1 / 0",
        "import numpy; print(numpy.zeros(3))",
    ]

    def one(number: int) -> None:
        if number % 10 == 0:
            with own.open("reply(receive())", upcoming="") as session:
                session.ask(b"x")
        else:
            own.run(codes[number % len(codes)])

    def census() -> tuple[int, int, int]:
        below = [pid for worker in own.worker_pids for pid in (worker, *descendants(worker))]
        return len(below), len(os.listdir("/proc/self/fd")), sum(map(resident_kib, below))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(200)))
        before, mine = census(), resident_kib(os.getpid())
        files = set(os.listdir("/tmp")), set(os.listdir("/dev/shm"))
        list(threads.map(one, range(10_000)))
    after = census()
    assert after[0] <= before[0], "processes were left"
    assert after[1] <= before[1], "files were left open"
    assert after[2] < before[2] + 4096, "the zygotes grew"
    assert resident_kib(os.getpid()) < mine + 16_384, "we grew"
    left = (set(os.listdir("/tmp")) - files[0], set(os.listdir("/dev/shm")) - files[1])
    assert not any("sandbox" in name or "program" in name for names in left for name in names)
    own.close()
