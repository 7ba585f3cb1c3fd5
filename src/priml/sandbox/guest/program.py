"""Runs one program as `__main__` in this process and ends the process: the innermost part of every sandbox.

It runs inside, with the standard library alone, so that it starts in milliseconds and can be shown to any interpreter.
"""

import atexit
import builtins
import json
import linecache
import os
import sys
import threading
import traceback
import types
from typing import NoReturn

NAME = "<program>"


def main(code: str, channel: tuple[int, int] | None) -> NoReturn:
    """Run `code`; never returns. File descriptors 0, 1 and 2 are the program's own already.

    `channel`: where the messages of a conversation are read and written.
    """
    _fresh_streams()
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # else of `site`, which is not loaded here
    sys.modules["__main__"] = module
    sys.argv[:] = [NAME]
    if channel is not None:
        module.__dict__.update(_channel(*channel))
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)  # for readable tracebacks
    status = 1
    try:
        status = _exit_status(code, module.__dict__)
        # What an interpreter does at its end, short of freeing every object: that takes longer than most programs.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        status = status or 1
        _print_error(sys.exception() or RuntimeError())
    finally:
        os._exit(_flushed(status))


def warm_up() -> None:
    """Do, before any fork, what is slow the first time (milliseconds)."""
    exec(compile("try:\n    1 / 0\nexcept ZeroDivisionError as error: pass", NAME, "exec"), {})
    traceback.format_exc()
    json.loads(json.dumps({"code": "", "limits": {"wall_s": 1.0}}))


def forget_us(path: list[str]) -> None:
    """Let `import` find the standard library and the packages in the folders of `path`, and nothing of ours."""
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.dirname(__file__))] + path
    for name in [name for name in sys.modules if name.partition(".")[0] == "guest"]:
        del sys.modules[name]


def _exit_status(code: str, names: dict[str, object]) -> int:
    try:
        exec(compile(code, NAME, "exec", dont_inherit=True), names)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except BaseException as error:  # a stranger's program: this is where it all ends
        error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)  # without our own frame
        _print_error(error)
        return 1
    return 0


def _print_error(error: BaseException) -> None:
    try:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(error)  # unlike the interpreter's own, it finds the lines of our program
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:  # out of memory, or the program's own hook failed
        sys.__excepthook__(type(error), error, error.__traceback__)


def _flushed(status: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # closed or replaced by the program, or nobody reads any more
            status = status or 120
    return status


def _fresh_streams() -> None:
    """Replace the streams made at the interpreter's start, which remember the files they were made on."""
    text = {"encoding": "utf-8", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, errors="surrogateescape", **text)  # noqa: SIM115 (open to the end)
    sys.stdout = sys.__stdout__ = open(1, "w", errors="surrogateescape", **text)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", **text)  # noqa: SIM115


def _channel(source: int, target: int) -> dict[str, object]:
    def receive() -> bytes:
        return read_exactly(source, int.from_bytes(read_exactly(source, 4), "big"))

    def reply(message: bytes) -> None:
        left = memoryview(len(message).to_bytes(4, "big") + message)
        while left:
            left = left[os.write(target, left) :]

    return {"receive": receive, "reply": reply}


def read_exactly(fd: int, count: int) -> bytes:
    """Return `count` bytes. Raises EOFError when there are fewer."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError("the conversation is over")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
