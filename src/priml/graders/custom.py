"""A user's own function as a verifier, named in the settings: `my_rewards.py:grade` or `package.module:function`."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from concurrent.futures import Future, InvalidStateError
from itertools import count
from multiprocessing.connection import Pipe
from typing import Any

from priml.errors import RunError, UsageError
from priml.plugins import dumped_line
from priml.types import Problem, Verdict

Json = dict[str, Any]

_START_LIMIT_S = 600.0
"""For its imports; a model may be loaded there."""
_MAX_DEATHS = 16
"""In a row: then the function itself is at fault, not a rare response."""
_LAST_WORDS_S = 5.0
"""Time to write its stack and end."""
_ASYNC_CALLS = 16
_BOOT = (
    "import json, sys; start = json.loads(sys.argv[1]); sys.path[:] = start['path']; "
    "from priml.graders.custom_worker import main; main(start)"
)


class CustomVerifier:
    """The `Verifier` around a function called as `function(problem, response)`, in a process of its own.

    The function may return a `Verdict`, a bool, or a score in [0, 1] (correct at 1). It may be `async`: then up to 16
    calls run at once, in one event loop, so that clients kept between calls stay valid. A plain function is never
    called twice at once.

    A failure of the function or of its process tells nothing about the response, so it makes the verdict *undecided*,
    with the failure and its place as reason. The next call starts another process, which imports the function again.
    """

    def __init__(self, function: str, *, limit_s: float = 120.0, memory_mib: int = 4096) -> None:
        """Start the process and import the function there.

        Args:
            function: `FILE.py:NAME` or `PACKAGE.MODULE:NAME`.
            limit_s: Wall time of a call. The function may wait for others, so its processor time would not tell.
            memory_mib: What the process may allocate.

        Raises:
            UsageError: there is no such function, or importing it fails.
        """
        self._name = function
        self._limit_s = limit_s
        self._memory_mib = memory_mib
        self._starting = threading.Lock()
        self._deaths = 0
        self._end = weakref.finalize(self, int)
        self._process = self._start()
        self._room = threading.Semaphore(_ASYNC_CALLS if self._process.is_async else 1)

    @property
    def pid(self) -> int:
        """Process id of the function's process."""
        return self._process.pid

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the function's verdict.

        Raises:
            UsageError: the function returned something else than a verdict, a bool or a number in [0, 1].
            RunError: its processes have died many times in a row.
        """
        with self._room:
            process = self._running()
            # An asynchronous call is ended at its limit by its own loop; one that blocks the loop is ended from here.
            reply = process.ask(_packed(problem, response), self._limit_s * (2 if process.is_async else 1))
        if "died" in reply:
            return Verdict.undecided(reply["died"], layer="process")
        self._deaths = 0
        if "refused" in reply:
            raise UsageError(f"verify.function: {self._name} returned {reply['refused']}")
        if "failed" in reply:
            return Verdict.undecided(reply["failed"])
        return Verdict(**reply)

    def close(self) -> None:
        """End the process. This also happens when the verifier is collected or the program ends."""
        self._end()

    def _running(self) -> _Process:
        with self._starting:
            if self._process.cause is not None:
                if self._deaths == _MAX_DEATHS:
                    raise RunError(
                        f"verify.function: the process of {self._name} has ended {_MAX_DEATHS} times without a "
                        f"verdict in between, the last time: {self._process.cause}; mend the function, or raise "
                        "verify.time_limit or verify.memory_mib"
                    )
                self._deaths += 1
                self._process = self._start()
            return self._process

    def _start(self) -> _Process:
        process = _Process(
            {"function": self._name, "limit_s": self._limit_s, "memory_mib": self._memory_mib, "path": sys.path}
        )
        self._end.detach()
        self._end = weakref.finalize(self, process.kill)
        ready = process.await_start()
        if refused := ready.get("refused") or ready.get("died"):
            process.kill()
            begin = "" if "refused" in ready else f"verify.function: importing {self._name} fails: "
            raise UsageError(f"{begin}{refused}")
        return process


class _Process:
    """One process and our end of its socket. A thread starts it and waits for its replies until it has ended."""

    def __init__(self, start: Json) -> None:
        self._connection, self._theirs = Pipe()
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115  # what the process wrote when it died
        self._start = start
        self._ready: Future[Json] = Future()
        self._replies: dict[int, Future[Json]] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.cause: str | None = None
        """Why it has ended; None while it lives."""
        self.is_async = False
        self._is_over_time = False
        # The system kills the process when this thread ends, that is with us: see `die_with_parent`.
        threading.Thread(target=self._work, name="custom-verifier", daemon=True).start()

    @property
    def pid(self) -> int:
        assert self._process is not None, "it has started"
        return self._process.pid

    def await_start(self) -> Json:
        return self._within(self._ready, _START_LIMIT_S)

    def ask(self, request: bytes, limit_s: float) -> Json:
        """The reply, or why there is none."""
        number, reply = next(self._numbers), Future[Json]()
        self._replies[number] = reply
        with self._lock, contextlib.suppress(OSError):  # it has ended, and the thread says why
            self._connection.send((number, request))
        if self.cause is not None:
            _settle(reply, {"died": self.cause})
        try:
            return self._within(reply, limit_s)
        finally:
            del self._replies[number]

    def kill(self) -> None:
        """With all that the function has started."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _within(self, reply: Future[Json], limit_s: float) -> Json:
        try:
            return reply.result(timeout=limit_s)
        except TimeoutError:
            self._is_over_time = True
        if self._process is not None:
            self._process.send_signal(signal.SIGABRT)  # it writes its stack and ends
        try:
            return reply.result(timeout=_LAST_WORDS_S)
        except TimeoutError:
            self.kill()
        return reply.result()

    def _work(self) -> None:
        try:
            self._process = self._spawn()
            self._theirs.close()
            ready: Json = json.loads(self._connection.recv_bytes())
            self.is_async = ready.get("is_async", False)
            _settle(self._ready, ready)
            while True:
                reply: Json = json.loads(self._connection.recv_bytes())
                if waiting := self._replies.get(reply.pop("number")):
                    _settle(waiting, reply)
        except (EOFError, OSError) as error:
            self.cause = self._ended(error)
        for waiting in [self._ready, *self._replies.values()]:
            _settle(waiting, {"died": self.cause})
        self._connection.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        start = {**self._start, "connection": self._theirs.fileno(), "stacks": self._stacks.fileno()}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(start)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._theirs.fileno(), self._stacks.fileno()),
            start_new_session=True,
        )

    def _ended(self, error: Exception) -> str:
        """How, and where."""
        if self._process is None:
            return f"no process can be started ({error})"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_S)
        self.kill()
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._stacks.seek(0)
        place = dumped_line(self._stacks.read().decode("utf-8", "replace")) or self._start["function"]
        self._stacks.close()
        return f"{'time limit' if self._is_over_time else how} in {os.path.basename(place)}"


def _settle(future: Future[Json], value: Json) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(value)


def _packed(problem: Problem, response: str) -> bytes:
    try:
        return pickle.dumps((problem, response))  # read by our own process; what comes back is JSON
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"problem {problem.id!r}: found columns that cannot be sent to the verifier's process ({error}), need "
            "plain values; leave them out"
        ) from error
