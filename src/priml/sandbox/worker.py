"""Our side of one zygote: it is started, starts programs for us, and may be lost."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxLost, SandboxUnavailable
from priml.sandbox.child import popen_from_lasting_thread
from priml.sandbox.guest.zygote import END, UNCONFINED
from priml.sandbox.levels import Level
from priml.sandbox.running import GRACE_S, End, Pipes, Running

_START_LIMIT_S = 60.0
_HEAVY_MODULES = ["numpy", "sympy"]
_PACKET = 4096


class Worker:
    """A zygote, and when a program first wants it a second one, forked from the first, that has imported more.

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
            [*level.wall, *interpreter.command("zygote", start, place=seen)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._messages,
            pass_fds=(theirs.fileno(),),
            env=dict(level.environment),
            cwd="/",
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer
        )
        with theirs:
            self._process = popen_from_lasting_thread(popen)
        self._light = _Control(ours)
        self._heavy: _Control | None = None
        self._heavy_lock = threading.Lock()
        self._programs: set[_ZygoteHandle] = set()

    @property
    def num_programs(self) -> int:
        """Programs that run here now."""
        return len(self._programs)

    def is_lost(self) -> bool:
        """Whether a zygote of it has ended, or is about to."""
        controls = [self._light, *([self._heavy] if self._heavy else [])]
        return self._process.poll() is not None or any(control.is_cut() for control in controls)

    @property
    def pid(self) -> int:
        """The process we started: the zygote, or the wall around it."""
        return self._process.pid

    def ready(self) -> dict[str, Any]:
        """Wait until it serves; what the zygote reports about itself. Raises `SandboxUnavailable` with the reason."""
        try:
            return self._light.ready()
        except SandboxLost as error:
            raise SandboxUnavailable(f"the sandbox did not start: {self.stop_and_read_error()}") from error

    def start(self, code: str, stdin: str, limits: Limits, *, talks: bool, heavy: bool) -> Running:
        """Start a program, `heavy`: where numpy and sympy are imported. Raises `SandboxLost`."""
        control = self._heavy_control() if heavy else self._light
        control.ready()
        started = time.monotonic()
        request = _memory_file(json.dumps({"code": code, "stdin": stdin, "limits": asdict(limits)}).encode())
        ours, theirs = _packet_sockets()
        pipes, their_pipes = Pipes.pairs(talks=talks)
        running = Running(_ZygoteHandle(ours, request, self._programs), pipes, limits, started=started)
        channel = [their_pipes.channel.fileno()] if their_pipes.channel else []
        fds = [theirs.fileno(), request, their_pipes.stdout, their_pipes.stderr, *channel]
        try:
            try:
                control.send({"do": "run"}, fds)
            finally:
                theirs.close()
                their_pipes.close()
        except SandboxLost:
            running.close()
            raise
        return running

    def stop_and_read_error(self) -> str:
        """End it; the last line of its standard error."""
        self._process.kill()
        self._process.wait()
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it gave no reason"

    def close(self) -> None:
        """End it and every program it has started."""
        self._light.close()
        if self._heavy is not None:
            self._heavy.close()
        self._process.kill()
        self._process.wait()
        self._messages.close()

    def _heavy_control(self) -> _Control:
        with self._heavy_lock:
            if self._heavy is None:
                self._light.ready()
                ours, theirs = _packet_sockets()
                with theirs:
                    self._light.send({"do": "warm", "modules": _HEAVY_MODULES}, [theirs.fileno()])
                self._heavy = _Control(ours)
            return self._heavy


class _Control:
    """A control socket; `guest.zygote` describes what goes over it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._about: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def ready(self) -> dict[str, Any]:
        if self._about is None:
            with self._lock:
                if self._about is None:
                    self._about = self._first_packet()
        return self._about

    def _first_packet(self) -> dict[str, Any]:
        self._control.settimeout(_START_LIMIT_S)
        try:
            packet = self._control.recv(_PACKET)
        except OSError as error:  # TimeoutError included
            raise SandboxLost(f"sandbox: a zygote did not start: {error}") from error
        if not packet:
            raise SandboxLost("sandbox: a zygote ended while starting")
        return json.loads(packet)

    def is_cut(self) -> bool:
        """Whether the other end is gone."""
        poll = select.poll()
        poll.register(self._control, 0)  # POLLHUP is always reported
        return bool(poll.poll(0))

    def send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)
        except OSError as error:
            raise SandboxLost(f"sandbox: a zygote is gone: {error}") from error

    def close(self) -> None:
        self._control.close()


class _ZygoteHandle:
    """Implements `ProcessHandle` for a program of a zygote: its socket there, and the file of the request for it.

    It is in the set of its worker's `programs` until it is released.
    """

    def __init__(self, handle: socket.socket, request: int, programs: set[_ZygoteHandle]) -> None:
        self._socket = handle
        self._request = request
        self._programs = programs
        programs.add(self)
        self._is_over = False

    def fileno(self) -> int:
        return self._socket.fileno()

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
