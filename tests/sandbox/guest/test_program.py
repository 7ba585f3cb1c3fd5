"""What a program sees of itself: an interpreter of its own, and nothing of ours."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import yaml

from priml.sandbox.guest import program
from priml.sandbox.pool import LocalSandbox


def said(sandbox: LocalSandbox, code: str, stdin: str = "") -> str:
    result = sandbox.run(code, stdin=stdin)
    assert result.exit_code == 0, result
    return result.stdout


def test_it_is_the_main_module_with_no_arguments(strongest: LocalSandbox):
    code = "import sys, __main__\nx = 1\nprint(__name__, sys.argv, __main__.x, sorted(globals())[:3])"
    assert said(strongest, code) == "__main__ ['<program>'] 1 ['__builtins__', '__doc__', '__loader__']\n"


@pytest.mark.parametrize("module", ["guest", "kernel", "limits", "program", "zygote"])
def test_our_modules_are_not_importable(strongest: LocalSandbox, module: str):
    result = strongest.run(f"import {module}")
    assert "ModuleNotFoundError" in result.stderr


def test_tracebacks_show_its_lines_and_none_of_ours(strongest: LocalSandbox):
    result = strongest.run("def f():\n    return 1 / 0\nf()\n")
    assert result.stderr == (
        'Traceback (most recent call last):\n  File "<program>", line 3, in <module>\n    f()\n'
        '  File "<program>", line 2, in f\n    return 1 / 0\n           ~~^~~\nZeroDivisionError: division by zero\n'
    )


def test_it_ends_as_an_interpreter_does(strongest: LocalSandbox):
    code = (
        "import atexit, threading, time\natexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('main')"
    )
    assert said(strongest, code) == "main\nthread\nat exit\n"


def test_all_ways_to_read_the_input_work(strongest: LocalSandbox):
    ways = {
        "input()": "a",
        "__import__('sys').stdin.read().split()[1]": "b",
        "open(0).read().split()[1]": "b",
        "open('/dev/stdin').read().split()[0]": "a",
        "__import__('sys').stdin.buffer.readline()": "b'a\\n'",
        "__import__('os').read(0, 1)": "b'a'",
        "__import__('numpy').fromfile('/dev/stdin', sep=' ', dtype=float, count=0).size": "0",
    }
    for way, expected in ways.items():
        assert said(strongest, f"print({way})", stdin="a\nb\n") == f"{expected}\n", way


ORDINARY = {
    "asyncio": ("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    print(1)\nasyncio.run(f())", "1"),
    "a pool": ("import multiprocessing as m\nwith m.Pool(2) as p: print(p.map(abs, [-1, 2]))", "[1, 2]"),
    "threads": ("from concurrent.futures import ThreadPoolExecutor as T\nprint(list(T(4).map(abs, [-1])))", "[1]"),
    "a child": ("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(5)'])", "5"),
    "a file": ("import tempfile\nwith tempfile.TemporaryFile() as f: print(f.write(b'abc'))", "3"),
    "recursion": ("import sys\nsys.setrecursionlimit(10**5)\ndef f(n): return n and f(n - 1)\nprint(f(20000))", "0"),
    "pickle": (
        "import dataclasses, pickle\n@dataclasses.dataclass\nclass A: x: int\nprint(pickle.loads(pickle.dumps(A(1))))",
        "A(x=1)",
    ),
    "time zones": ("import zoneinfo\nprint(zoneinfo.ZoneInfo('UTC'))", "UTC"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs_of_many_kinds_work(strongest: LocalSandbox, name: str):
    code, expected = ORDINARY[name]
    assert said(strongest, code) == f"{expected}\n"


def test_the_order_of_sets_is_the_same_every_time(strongest: LocalSandbox):
    code = "print(list({str(n) for n in range(50)}))"
    assert len({said(strongest, code) for _ in range(3)}) == 1


def test_chance_is_different_every_time(strongest: LocalSandbox):
    assert len({said(strongest, "import random; print(random.random())") for _ in range(3)}) == 3


ENDINGS = yaml.safe_load((Path(__file__).parent / "endings.yaml").read_text())


@pytest.mark.parametrize("name", ENDINGS)
def test_programs_end_as_those_of_an_interpreter(strongest: LocalSandbox, name: str):
    assert said(strongest, ENDINGS[name]) == "6\n"


FAILING = {
    "standard output closed too early": "import sys\nsys.stdout.close()\nprint(6)",
    "an object without flush": "import sys\nprint(6)\nsys.stdout = 3",
    "an exit code": "import sys\nprint(6)\nsys.exit(3)",
    "an exception behind the output": "print(6)\n1 / 0",
    "recursion without an end": "def f(): f()\nprint(6)\nf()",
}


@pytest.mark.parametrize("name", FAILING)
def test_programs_fail_as_those_of_an_interpreter(strongest: LocalSandbox, name: str):
    assert strongest.run(FAILING[name]).exit_code != 0


def test_a_channel_that_does_not_wait_is_waited_for():
    """As sockets do in gVisor now and then, which looked like a crash of the program."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        channel = program._channel(theirs.fileno(), theirs.fileno())
        threading.Timer(0.2, ours.sendall, [b"\0\0\0\2hi"]).start()
        assert channel["receive"]() == b"hi"
        message = b"x" * (1 << 22)  # more than a socket holds
        sent = threading.Thread(target=channel["reply"], args=(message,))
        sent.start()
        assert program.read_exactly(ours.fileno(), 4 + len(message)) == len(message).to_bytes(4, "big") + message
        sent.join()
