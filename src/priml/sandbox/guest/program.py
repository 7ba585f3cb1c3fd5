"""Runs one program as `__main__` in this process and ends the process: the innermost part of every sandbox.

It runs inside, with the standard library alone, so that it starts in milliseconds and can be shown to any interpreter.
"""

import atexit
import builtins
import functools
import gc
import io
import json
import linecache
import os
import re
import select
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

NAME = "<program>"
_Done = TypeVar("_Done")


def main(code: str, channel: tuple[int, int] | None) -> NoReturn:
    """Run `code`; never returns. File descriptors 0, 1 and 2 are the program's own already.

    `channel`: where the messages of a conversation are read and written.
    """
    _fresh_streams()
    sys.set_int_max_str_digits(0)  # the limits on time and output bound it; judges have none
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
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        status = status or 1
        _print_error(sys.exception() or RuntimeError())
    try:
        status = _flush_standard_streams(status)
        _free(module.__dict__)
        _flush_standard_streams(status)
    finally:
        os._exit(status)


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


def _flush_standard_streams(status: int) -> int:
    """Return `status`, or 120 if what was printed cannot be written. A program may close its streams, as anywhere."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:  # nobody reads any more, or the program's own object has no such method
            status = status or 120
    return status


def _free(names: dict[str, object]) -> None:
    """Free the program's objects as an interpreter does: open files are flushed, `__del__` and `finally` are run."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    for name in sorted(names, key=lambda name: not (name[:1] == "_" and name[1:2] != "_")):
        if name != "__builtins__":
            names[name] = None
    gc.collect()


def _fresh_streams() -> None:
    """Replace the streams made at the interpreter's start, which remember the files they were made on."""
    text = {"encoding": "utf-8", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, errors="surrogateescape", **text)  # noqa: SIM115 (open to the end)
    sys.stdout = sys.__stdout__ = open(1, "w", errors="surrogateescape", **text)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", **text)  # noqa: SIM115
    if not os.path.exists("/proc/self/fd"):  # where the devices of the standard streams lead
        builtins.open = io.open = _open_device(io.open)
        os.open = _open_device(os.open)


_DEVICE = re.compile(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/(\d+)")


def _open_device(opened: Callable[..., Any]) -> Callable[..., Any]:
    """Return `open`, which also knows the names of open file descriptors."""

    @functools.wraps(opened)
    def open(file: object, *args: object, **kwargs: object) -> object:
        device = _DEVICE.fullmatch(str(file)) if isinstance(file, str | os.PathLike) else None
        if device is None:
            return opened(file, *args, **kwargs)
        copy = os.dup(int(device[2] or {"stdout": 1, "stderr": 2}[device[1]]))
        return copy if opened.__module__ == "posix" else opened(copy, *args, **kwargs)

    return open


def _channel(source: int, target: int) -> dict[str, object]:
    def receive() -> bytes:
        return read_exactly(source, int.from_bytes(read_exactly(source, 4), "big"))

    def reply(message: bytes) -> None:
        left = memoryview(len(message).to_bytes(4, "big") + message)
        while left:
            left = left[_when_ready(target, select.POLLOUT, functools.partial(os.write, target, left)) :]

    return {"receive": receive, "reply": reply}


def _when_ready(fd: int, event: int, act: Callable[[], _Done]) -> _Done:
    """Act, and wait where that would block: sockets that gVisor passes on do not always wait by themselves."""
    while True:
        try:
            return act()
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(fd, event)
            waiting.poll()


def read_exactly(fd: int, count: int) -> bytes:
    """Return `count` bytes. Raises EOFError when there are fewer."""
    parts = []
    while count:
        part = _when_ready(fd, select.POLLIN, functools.partial(os.read, fd, min(count, 1 << 20)))
        if not part:
            raise EOFError("the conversation is over")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
