"""A sandbox on this machine: one zygote per core starts programs behind one level of isolation."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxLost, SandboxResult, SandboxUnavailable
from priml.sandbox.child import popen_from_lasting_thread
from priml.sandbox.guest.zygote import END, UNCONFINED
from priml.sandbox.levels import Level
from priml.sandbox.running import GRACE_S, End, Pipes, Running

_log = logging.getLogger(__name__)
_HEAVY_MODULES = ["numpy", "sympy"]
# A program that names one of these is forked from a zygote that has imported it, or what it is made of. Any other is
# forked from a zygote of a sixth of the size, in a third of the time. A wrong guess costs nothing but time.
_HEAVY = re.compile(r"\b(?:numpy|sympy|scipy|pandas|sklearn)\b")
_START_LIMIT_S = 60.0
_PACKET = 4096


class LocalSandbox:
    """Implements `Sandbox`. At most `workers` programs of `run` go at once; the others wait before their clock starts.

    Sessions do not wait: they last as long as the caller likes, and one thread may need two.
    """

    def __init__(self, level: Level, *, workers: int | None = None) -> None:
        self._level = level
        self._size = workers or len(os.sched_getaffinity(0))
        self._turn = threading.BoundedSemaphore(self._size)
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _close_all, self._workers)
        self._workers.append(_Worker(level))
        abi = self._workers[0].landlock_abi()
        memory = "memory of a program watched from outside" if level.inner == "namespaces" else "one process a program"
        landlock = f"Landlock ABI {abi}" if abi else "no Landlock in this kernel"
        self.level = f"{level.description}; {landlock}; seccomp; {memory}; {self._size} workers"

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the current workers: the zygotes, or the walls around them."""
        return tuple(worker.process.pid for worker in self._workers)

    def run(self, code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
        heavy = _HEAVY.search(code) is not None
        with self._turn, self._worker() as worker:
            return worker.start(code, stdin, limits, talks=False, heavy=heavy).wait()

    def open(self, code: str, *, limits: Limits = Limits(), upcoming: str | None = None) -> Running:  # noqa: B008
        heavy = upcoming is None or _HEAVY.search(f"{code}\n{upcoming}") is not None
        with self._worker() as worker:
            return worker.start(code, "", limits, talks=True, heavy=heavy)

    def close(self) -> None:
        self._finalizer()

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        """Yield the worker with the fewest programs, a new one while all are busy. Lost ones are replaced."""
        with self._lock:
            worker = self._choose()
            while worker.is_lost():
                self._drop(worker)
                worker = self._choose()
        try:
            yield worker
        except SandboxLost:
            with self._lock:
                self._drop(worker)
            raise

    def _choose(self) -> _Worker:
        assert self._finalizer.alive, "the sandbox is closed"
        worker = min(self._workers, key=lambda worker: len(worker.programs), default=None)
        if worker is None or (worker.programs and len(self._workers) < self._size):
            worker = _Worker(self._level)
            self._workers.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        """Close a lost worker. The next program that finds the others busy starts another."""
        if worker in self._workers:  # not dropped by another thread already
            self._workers.remove(worker)
            _log.warning("sandbox: a worker was lost: %s", worker.stop_and_read_error())
            worker.close()


def _close_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().close()


class _Worker:
    """A zygote, and when a program first needs it a second one, forked from the first, that has imported more.

    `start` may be called from any number of threads at once.
    """

    def __init__(self, level: Level) -> None:
        ours, theirs = _packet_sockets()
        seen = interpreter.inside if level.wall else str
        start = {
            "inner": level.inner,
            "visible": [path for path in interpreter.visible() if not os.path.islink(path)],
            "path": [seen(path) for path in interpreter.packages()],
            "control_fd": theirs.fileno(),
        }
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed with us)
        popen = partial(
            subprocess.Popen[bytes],
            [*level.wall, *interpreter.command("zygote", start, seen=seen)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            pass_fds=(theirs.fileno(),),
            env=dict(level.environment),
            cwd="/",
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer
        )
        with theirs:
            self.process = popen_from_lasting_thread(popen)
        self._light = _Control(ours)
        self._heavy: _Control | None = None
        self._heavy_lock = threading.Lock()
        self.programs: set[_ZygoteHandle] = set()
        """Programs that run here now."""

    def is_lost(self) -> bool:
        """Return whether one of the zygotes has ended, or is about to."""
        controls = [self._light, *([self._heavy] if self._heavy else [])]
        return self.process.poll() is not None or any(control.is_cut() for control in controls)

    def landlock_abi(self) -> int:
        """Wait until it serves. Return the version of Landlock in force, 0 for none.

        Raises:
            SandboxUnavailable: it did not start; with the reason.
        """
        try:
            return self._light.wait_until_ready()["landlock"]
        except SandboxLost as error:
            raise SandboxUnavailable(f"the sandbox did not start: {self.stop_and_read_error()}") from error

    def start(self, code: str, stdin: str, limits: Limits, *, talks: bool, heavy: bool) -> Running:
        """Start a program, `heavy`: where numpy and sympy are imported. Raises `SandboxLost`."""
        control = self._heavy_control() if heavy else self._light
        control.wait_until_ready()
        started = time.monotonic()
        request = _memory_file(json.dumps({"code": code, "stdin": stdin, "limits": asdict(limits)}).encode())
        ours, theirs = _packet_sockets()
        pipes, their_pipes = Pipes.pairs(talks=talks)
        running = Running(_ZygoteHandle(ours, request, self.programs), pipes, limits, started=started)
        channel = [their_pipes.channel.fileno()] if their_pipes.channel else []
        fds = [theirs.fileno(), request, their_pipes.stdout, their_pipes.stderr, *channel]
        try:
            try:
                control.send({"do": "run", "memory_mib": limits.memory_mib}, fds)
            finally:
                theirs.close()
                their_pipes.close()
        except SandboxLost:
            running.close()
            raise
        return running

    def stop_and_read_error(self) -> str:
        """End it. Return the last line of its standard error."""
        self.process.kill()
        self.process.wait()
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it gave no reason"

    def close(self) -> None:
        """End it and every program it has started."""
        self._light.close()
        if self._heavy is not None:
            self._heavy.close()
        self.process.kill()
        self.process.wait()
        self._messages.close()

    def _heavy_control(self) -> _Control:
        with self._heavy_lock:
            if self._heavy is None:
                self._light.wait_until_ready()
                ours, theirs = _packet_sockets()
                with theirs:
                    self._light.send({"do": "warm", "modules": _HEAVY_MODULES}, [theirs.fileno()])
                self._heavy = _Control(ours)
            return self._heavy


class _Control:
    """A control socket; `guest.zygote` describes what goes over it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._about: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.close = control.close

    def wait_until_ready(self) -> dict[str, Any]:
        """Return what the zygote reports about itself when it has started."""
        with self._lock:
            if not self._about:
                self._control.settimeout(_START_LIMIT_S)
                try:
                    packet = self._control.recv(_PACKET)
                except OSError as error:  # TimeoutError included
                    raise SandboxLost(f"sandbox: a zygote did not start: {error}") from error
                if not packet:
                    raise SandboxLost("sandbox: a zygote ended while starting")
                self._about = json.loads(packet)
            return self._about

    def is_cut(self) -> bool:
        """Return whether the other end is gone."""
        poll = select.poll()
        poll.register(self._control, 0)  # POLLHUP is always reported
        return bool(poll.poll(0))

    def send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)
        except OSError as error:
            raise SandboxLost(f"sandbox: a zygote is gone: {error}") from error


class _ZygoteHandle:
    """Implements `ProcessHandle` for a program of a zygote: its socket there, and the file of the request for it.

    It is in its worker's `programs` until it is released.
    """

    def __init__(self, handle: socket.socket, request: int, programs: set[_ZygoteHandle]) -> None:
        self._socket = handle
        self._request = request
        self._programs = programs
        programs.add(self)
        self._is_over = False
        self.fileno = handle.fileno

    def kill(self) -> None:
        with suppress(OSError):  # the zygote has gone, or is done with it
            self._socket.shutdown(socket.SHUT_WR)

    def wait(self) -> End:
        self._is_over = True
        try:
            packet = self._socket.recv(_PACKET)
        except OSError:
            packet = b""
        if not packet:
            raise SandboxLost("sandbox: the zygote of a program was lost")
        end = End(*END.unpack(packet))
        if end.exit_code == 1 and (report := os.pread(self._request, 500, 0)).startswith(UNCONFINED):
            raise SandboxLost(f"sandbox: a program could not be started: {report.decode(errors='replace')}")
        return end

    def release(self) -> None:
        self._programs.discard(self)
        if not self._is_over:
            self.kill()
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll(GRACE_S * 1000)
        self._socket.close()
        os.close(self._request)


def _packet_sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("request")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
