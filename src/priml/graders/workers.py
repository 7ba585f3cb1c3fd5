"""Killable worker processes for work that may hang, use all memory or crash: one request in, one reply out.

`WorkerPool` is the trainer's side, `serve` the worker's. They exchange JSON over a socket pair; nothing is pickled.

Not pebble (5.2.3 was measured): its workers start by `multiprocessing`, which fails from standard input and runs a
script without `if __name__ == "__main__"` a second time. There is nothing to gain: 32 ms of the worker's processor time
a pair with both, 0.9 ms of the trainer's (here 0.4) and 3 ms a second when idle (here 0).
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from enum import StrEnum
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any, NoReturn

from priml.errors import RunError

Json = dict[str, Any]

_START_LIMIT_S = 300.0
_MAX_SLOWDOWN = 75
"""Wall time of a request over its processor time, at most: beyond it the machine is at fault, not the request."""
_MAX_FAILED_STARTS = 4
_ENDED, _RAISED, _RENEWED = 0, 1, 2
"""Exit codes of a child: the socket was closed, an exception left `handle`, or it has served its share."""
# Signals a process raises against itself. Any other death (SIGKILL, SIGTERM, ...) came from outside.
_OWN_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
_BOOT = (
    "import importlib, json, sys; start = json.loads(sys.argv[1]); sys.path[:] = start['path']; "
    "importlib.import_module(start['module']).main(start)"
)


class Failure(StrEnum):
    """Why a request has no reply. The request itself causes all of them but `LOST`."""

    TIME = "time limit"
    MEMORY = "memory limit"
    CRASH = "crash"
    LOST = "worker lost"


class WorkerPool:
    """A fixed number of workers, each with a hard limit of processor time and memory per request.

    The processes start together at the first request. Each imports its module once and then forks a child that serves;
    a child that dies is followed by another one within milliseconds, warm as the first. All are killed when the pool is
    closed or collected and when the interpreter exits. They end when this process dies. Each worker has its own
    session, so Ctrl-C in the terminal does not reach it.

    `ask` may be called from any number of threads.
    """

    def __init__(self, module: str, *, size: int, limit_s: float, memory_mib: int, recycle_after: int) -> None:
        """`module` is imported in the worker, and its `main` is called with the start message (see `serve`).

        `limit_s` is in seconds of the worker's processor time, so a busy machine changes no verdict. A child serves
        `recycle_after` requests.
        """
        self._start_message = {
            "module": module,
            "limit_s": limit_s,
            "memory_mib": memory_mib,
            "recycle_after": recycle_after,
        }
        self._size = size
        self._limit_s = limit_s
        self._idle: SimpleQueue[_Worker] = SimpleQueue()  # of those that have started, or failed to
        self._live: set[_Worker] = set()
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._finalizer = weakref.finalize(self, _kill_all, self._live)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the current workers, without their children; empty before the first request."""
        return tuple(worker.process.pid for worker in self._live)

    def ask(self, request: Json) -> Json | Failure:
        """Return the worker's reply, or why there is none.

        When a worker dies, its request is tried once more in another one, because the death may have another cause.
        After a time or memory limit there is no second try.

        Raises:
            RunError: no worker has managed to start, several times in a row.
        """
        with self._lock:
            if not self._live:
                for _ in range(self._size):
                    self._spawn()
        payload = json.dumps(request).encode()
        reply = self._try(payload)
        if reply in (Failure.LOST, Failure.CRASH):
            reply = self._try(payload)
        return reply

    def close(self) -> None:
        """Kill the workers. The next request starts new ones."""
        with self._lock:
            _kill_all(self._live)
            self._idle = SimpleQueue()

    def _spawn(self) -> None:
        worker = _Worker(self._start_message, self._idle)
        self._live.add(worker)

    def _try(self, payload: bytes) -> Json | Failure:
        worker = self._idle.get()
        try:
            return worker.ask(payload, self._limit_s)
        finally:
            if worker.is_usable:
                self._idle.put(worker)
            else:
                self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        with self._lock:
            self._live.discard(worker)
            self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
            self._spawn()
            failed = self._failed_starts
        if failed >= _MAX_FAILED_STARTS:
            raise RunError(
                f"verify: {failed} worker processes in a row died while starting `{self._start_message['module']}`; "
                "their messages are on standard error above. Run `priml doctor` to see what is missing."
            )


class _Worker:
    """One process and our end of its socket. It puts itself into the queue `idle` when it has started."""

    def __init__(self, start_message: Mapping[str, Any], idle: SimpleQueue[_Worker]) -> None:
        self._connection, theirs = Pipe()
        # The worker imports from the same folders as this process, except from "" (the current folder). The hash seed
        # is fixed, because the order of sets inside the engine must not change a verdict between runs.
        path = [entry for entry in sys.path if os.path.isabs(entry)]
        start = json.dumps({**start_message, "path": path, "fd": theirs.fileno()})
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, start],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.is_ready = False
        self.is_usable = False
        self._starting = threading.Thread(target=self._await_start, args=(idle,), daemon=True)
        self._starting.start()

    def _await_start(self, idle: SimpleQueue[_Worker]) -> None:
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(_START_LIMIT_S):
                self._connection.recv_bytes()
                self.is_ready = True
        idle.put(self)

    def ask(self, payload: bytes, limit_s: float) -> Json | Failure:
        """Return the reply. Afterwards the worker is usable, unless it is lost or the caller was interrupted."""
        self.is_usable = False
        if not self.is_ready:
            return Failure.LOST
        try:
            self._connection.send_bytes(payload)
            if not self._connection.poll(limit_s * _MAX_SLOWDOWN):
                return Failure.LOST  # the machine is too busy, or the worker was stopped: not the request's doing
            reply: Json = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            return Failure.LOST
        self.is_usable = True
        return Failure(reply["failure"]) if "failure" in reply else reply

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._starting is not threading.current_thread():
            self._starting.join()
        self._connection.close()


def _kill_all(workers: set[_Worker]) -> None:
    while workers:
        workers.pop().kill()


def serve(start: Json, handle: Callable[[Json], Json]) -> None:
    """In the worker: answer requests until the parent closes the socket or dies.

    Call it after the heavy imports: its first message tells the parent that the worker is ready. Requests are answered
    by a forked child. Over the limit of processor time a signal ends the child, also inside C code, and also when the
    parent was killed meanwhile. This process then replies why, and forks again.
    """
    connection = Connection(start["fd"])
    # Until here an import error reached the user's terminal; from here on the engine's chatter does not.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = start["memory_mib"] << 20
    with contextlib.suppress(ValueError):  # macOS knows this limit by name only
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    gc.freeze()  # what is here now is shared with the children: do not touch its pages
    connection.send_bytes(b"{}")
    busy = mmap.mmap(-1, 1)  # shared; not zero while a request waits for its reply
    while True:
        busy[0] = 0
        child = os.fork()
        if child == 0:
            _serve_as_child(connection, busy, start, handle)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == _ENDED:
            return
        if busy[0]:
            connection.send_bytes(json.dumps({"failure": _cause_of_death(code)}).encode())


def _serve_as_child(connection: Connection, busy: mmap.mmap, start: Json, handle: Callable[[Json], Json]) -> NoReturn:
    code = _RAISED
    try:
        for _ in range(start["recycle_after"]):
            request: Json = json.loads(connection.recv_bytes())
            busy[0] = 1
            signal.setitimer(signal.ITIMER_PROF, start["limit_s"])
            try:
                reply = handle(request)
            except MemoryError:
                reply = {"failure": Failure.MEMORY}
            signal.setitimer(signal.ITIMER_PROF, 0)
            busy[0] = 0
            connection.send_bytes(json.dumps(reply).encode())
            if "failure" in reply:
                break
        code = _RENEWED
    except (EOFError, ConnectionError):
        code = _ENDED
    finally:
        os._exit(code)


def _cause_of_death(code: int) -> Failure:
    if -code == signal.SIGPROF:
        return Failure.TIME
    return Failure.CRASH if code > 0 or -code in _OWN_SIGNALS else Failure.LOST
