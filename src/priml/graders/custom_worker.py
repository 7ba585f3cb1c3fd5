"""The process in which a user's verifier runs: one request in, one reply out. Never import this in the trainer.

Whatever the function does to its process (exits, crashes, takes all memory, prints) stays here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import json
import os
import pickle
import queue
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from numbers import Real
from typing import Any

from priml.errors import UsageError
from priml.plugins import failing_line, load
from priml.types import Problem, Verdict

Json = dict[str, Any]
Function = Callable[[Problem, str], object]

_ALL_FDS = 1 << 16
_LONGEST_REASON, _LONGEST_ANSWER = 200, 300


def main(start: Json) -> None:
    """Import the function, say whether it is asynchronous, and serve until the trainer closes its end or dies."""
    if sys.platform == "linux":  # the others cannot promise it
        _die_with_trainer()
        _take_children_along()
    faulthandler.enable(start["stacks"], all_threads=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = start["memory_mib"] << 20
    with contextlib.suppress(ValueError):  # not all systems have this limit
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))  # not of addresses: GPU libraries reserve terabytes
    connection, name = Connection(start["connection"]), start["function"]
    try:
        function: Function = load(name, setting="verify.function", takes=("problem", "response"))
    except UsageError as error:
        connection.send_bytes(json.dumps({"refused": str(error)}).encode())
        return
    call = getattr(function, "__call__", function)  # noqa: B004  # an object's method may be the asynchronous part
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
    connection.send_bytes(json.dumps({"is_async": is_async}).encode())
    if is_async:
        import asyncio

        asyncio.run(_serve_async(connection, function, start["limit_s"]))
    else:
        _serve(connection, function)


def _serve(connection: Connection, function: Function) -> None:
    """In the main thread and outside of any event loop: the function may use signals, and loops of its own."""
    requests: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    _receive(connection, requests.put)
    while True:
        number, request = requests.get()
        try:
            result = function(*_unpacked(request))
            if inspect.isawaitable(result):
                import asyncio  # half of the start of this process, and most functions need none

                result = asyncio.run(_wait_for(result))
            reply = reply_to(result)
        except BaseException as error:  # SystemExit and KeyboardInterrupt of the user's code, too
            reply = {"failed": _describe(error)}
        _send(connection, number, reply)


async def _serve_async(connection: Connection, function: Function, limit_s: float) -> None:
    import asyncio

    loop, calls = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def call(number: int, request: bytes) -> None:
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                reply = reply_to(await _wait_for(function(*_unpacked(request))))
        except BaseException as error:
            reply = {"failed": "time limit" if limit.expired() else _describe(error)}
        _send(connection, number, reply)

    def begin(request: tuple[int, bytes]) -> None:
        calls.add(task := loop.create_task(call(*request)))  # the loop itself keeps no task alive
        task.add_done_callback(calls.discard)

    _receive(connection, lambda request: loop.call_soon_threadsafe(begin, request))
    await asyncio.Event().wait()


async def _wait_for(result: Any) -> object:
    return await result if inspect.isawaitable(result) else result


def _receive(connection: Connection, put: Callable[[tuple[int, bytes]], object]) -> None:
    def work() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                put(connection.recv())
        os._exit(0)  # the trainer has gone, or wants no more

    threading.Thread(target=work, daemon=True).start()


def _unpacked(request: bytes) -> tuple[Problem, str]:
    return pickle.loads(request)  # from the trainer; the way back is JSON


def _send(connection: Connection, number: int, reply: Json) -> None:
    # From the main thread alone. JSON, as the trainer reads it.
    connection.send_bytes(json.dumps({"number": number, **reply}).encode())


def reply_to(result: object) -> Json:
    """A verdict as JSON from what the function returned; or what is wrong with it, as `refused`."""
    if getattr(result, "ndim", None) == 0:
        result = result.item()  # pyright: ignore[reportAttributeAccessIssue]  # numpy's and torch's numbers
    match result:
        case Verdict():
            return _checked(result)
        case bool():
            return _fields(Verdict.right("custom") if result else Verdict.wrong("custom"))
        case Real() if 0 <= float(result) <= 1:  # NaN is not
            return _fields(Verdict(correct=float(result) == 1.0, score=float(result), reason="custom"))
    return {"refused": f"{_show(result)}; it must return a priml.types.Verdict, a bool, or a number from 0 to 1."}


def _checked(verdict: Verdict) -> Json:
    correct, score = verdict.correct, verdict.score
    if correct is not None and not isinstance(correct, bool):
        return {"refused": f"a Verdict whose `correct` is {_show(correct)}; it must be True, False or None."}
    if (score is None) != (correct is None):
        return {"refused": "a Verdict that is undecided or has no score, but not both; `Verdict.undecided` has both."}
    if score is not None and not (isinstance(score, Real) and 0 <= float(score) <= 1):
        return {"refused": f"a Verdict whose `score` is {_show(score)}; it must be a number from 0 to 1."}
    return _fields(verdict)


def _fields(verdict: Verdict) -> Json:
    return {
        "correct": verdict.correct,
        "score": None if verdict.score is None else float(verdict.score),
        "reason": _clean(verdict.reason, _LONGEST_REASON),
        "answer": None if verdict.answer is None else _clean(verdict.answer, _LONGEST_ANSWER),
        "layer": _clean(verdict.layer, _LONGEST_REASON),
    }


def _clean(text: object, longest: int) -> str:
    """Short, and fit for any file: half characters are replaced."""
    return str(text)[:longest].encode("utf-8", "replace").decode()


def _show(value: object) -> str:
    return f"{repr(value)[:100]} ({type(value).__name__})"


def _describe(error: BaseException) -> str:
    """The file without its folders: a reason is short, and the same wherever the file lies."""
    return _clean(f"{type(error).__name__} in {os.path.basename(failing_line(error))}", _LONGEST_REASON)


def _die_with_trainer() -> None:
    """However the trainer dies, and whatever this process is busy with then."""
    from priml.sandbox.guest.kernel import die_with_parent

    die_with_parent()


def _take_children_along() -> None:
    """However this process ends, what the function has started ends too: all of our process group.

    A process of its own waits for that. It is no child of ours, so that a function that waits for its children does not
    wait for it.
    """
    ended = os.pidfd_open(os.getpid())
    if (between := os.fork()) != 0:
        os.close(ended)
        os.waitpid(between, 0)
        return
    if os.fork() != 0:
        os._exit(0)
    os.dup2(ended, 0)
    os.closerange(1, _ALL_FDS)  # the trainer's end of the socket must see our end as closed
    select.select([0], [], [])
    os.killpg(0, signal.SIGKILL)
