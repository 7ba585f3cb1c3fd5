"""The process that programs are forked from. It confines itself, imports modules, then starts programs on request.

`main` takes, as JSON on the command line:

- `inner`: how programs are confined: `namespaces` (a pid, mount, ipc and user namespace each) or `landlock` (none).
- `visible`: files and folders that a program may read, without namespaces. `path`: where packages are.
- `control_fd`: a sequential-packet socket to the caller.

On that socket we first send JSON, which says that we are ready and what holds. Then the caller sends:

- `{"do": "run"}` with file descriptors: a handle, a file with the request, the program's standard output and error,
  perhaps its channel. The handle is a sequential-packet socket, too. When the caller shuts it down, the program is
  killed. When the program has ended, for whatever reason, one packet `END` goes back on it.
- `{"do": "warm", "modules": [...]}` with one descriptor, a socket like `control_fd`: a second zygote that has imported
  those modules will serve it.

When the caller closes the socket or dies, everything here ends.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from . import kernel, landlock, limits, memory, namespaces, program, seccomp

END = struct.Struct("=id?")
"""The packet at the end of a program: exit code or minus the signal, seconds of processor time, and whether it was
killed because its processes together used more memory than allowed."""
_LIGHT = (
    *("bisect", "collections", "copy", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io"),
    *("itertools", "json", "math", "operator", "random", "re", "statistics", "string", "textwrap", "time", "typing"),
)
"""What ordinary programs import, and what is small."""
UNCONFINED = b"unconfined: "
"""Written at the start of the request's file when our own code failed to start the program."""
_FDS = 5
_BEYOND_ALL_FDS = 1 << 20
_CHANNEL_FD = 3
_LOOK_S = 0.02
"""Between two looks at the memory of programs. In this time a core fills some tens of MiB."""


def main(start: dict[str, Any]) -> None:
    """Confine this process, then serve."""
    program.forget_us(start["path"])
    control = socket.socket(fileno=start["control_fd"])
    if start["inner"] == "namespaces":
        namespaces.become_nobody()
        namespaces.enter()
        kernel.die_with_parent()
        if (first := os.fork()) != 0:  # as the first process of its namespace, the child takes all others along
            control.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    else:
        namespaces.become_nobody()
    kernel.die_with_parent()
    kernel.no_new_privileges()
    zygote = Zygote(start["inner"], start["visible"])
    _import(_LIGHT)
    zygote.serve(control)


@dataclass(slots=True)
class _Program:
    pid: int
    seen_pid: int
    """The same in /proc, which was mounted outside of our namespace."""
    handle: socket.socket
    memory_bytes: int
    """What its processes may hold together, shares of our own pages included."""
    is_over_memory: bool = False


class Zygote:
    """Forks programs on request. Each is confined before its first line is compiled."""

    def __init__(self, inner: str, visible: list[str]) -> None:
        self._isolates = inner == "namespaces"
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._offer_to_the_oom_killer(900)
        # With a user namespace of its own, a program's processes are counted apart.
        self._other_tasks = 0 if self._isolates else limits.tasks_of_user()
        if self._isolates:
            namespaces.hide_processes()
        self._landlock_abi, self._rules = self._landlock(visible)
        self._filter = seccomp.namespaced()
        self._running: dict[int, _Program] = {}
        """By pidfd."""

    def serve(self, control: socket.socket) -> None:
        """Serve requests until the caller is gone."""
        self._own_pidfd = os.pidfd_open(os.getpid())
        self._base_bytes = limits.address_space(self._proc)
        self._own_bytes = memory.resident(self._proc)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        program.warm_up()
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, what it shares with us
        with open(os.open("self/maps", os.O_RDONLY, dir_fd=self._proc)) as file:
            kernel.gather_into_huge_pages(file.read())
        control.send(json.dumps({"landlock": self._landlock_abi}).encode())
        next_look = 0.0
        while True:
            # Without namespaces a program has one process, whose address space has a limit.
            events = {fd for fd, _ in self._poll.poll(_LOOK_S * 1000 if self._isolates and self._running else None)}
            for over in self._running.keys() & events:
                self._reap(over)
            for running in self._running.values():
                if running.handle.fileno() in events:
                    self._poll.unregister(running.handle)
                    os.kill(running.pid, signal.SIGKILL)
            if self._isolates and self._running and time.monotonic() >= next_look:
                self._end_those_beyond_memory()
                next_look = time.monotonic() + _LOOK_S
            if control.fileno() in events:
                packet, fds, _, _ = socket.recv_fds(control, 4096, _FDS)
                if not packet:
                    return
                request = json.loads(packet)
                if request["do"] == "run":
                    self._run(request["memory_mib"], *fds)
                else:
                    self._warm(control, *fds, modules=request["modules"])

    def _warm(self, control: socket.socket, theirs: int, *, modules: list[str]) -> None:
        if self._isolates:
            namespaces.next_child_is_with_us(self._own_pidfd)
        if os.fork() == 0:
            control.close()
            while self._running:
                over, running = self._running.popitem()
                os.close(over)
                running.handle.close()
            os.close(self._own_pidfd)
            kernel.die_with_parent()
            _import(modules)
            self.serve(socket.socket(fileno=theirs))
            os._exit(0)
        os.close(theirs)

    def _run(self, memory_mib: int, handle_fd: int, request_fd: int, *pipes: int) -> None:
        if self._isolates:
            namespaces.next_child_is_first(self._own_pidfd)
        pid = os.fork()
        if pid == 0:
            self._become_program(request_fd, *pipes)
        for fd in (request_fd, *pipes):
            os.close(fd)
        over, handle = os.pidfd_open(pid), socket.socket(fileno=handle_fd)
        memory_bytes = self._own_bytes + (memory_mib << 20)
        self._running[over] = _Program(pid, memory.id_in(self._proc, over), handle, memory_bytes)
        self._poll.register(over, select.POLLIN)
        self._poll.register(handle, select.POLLIN)

    def _reap(self, over: int) -> None:
        """The program is dead, and every process it started: the kernel ends those before it tells us."""
        ended = self._running.pop(over)
        self._poll.unregister(over)
        os.close(over)
        _, status, usage = os.wait4(ended.pid, 0)
        with contextlib.suppress(ConnectionError, KeyError):
            self._poll.unregister(ended.handle)
        cpu_s = usage.ru_utime + usage.ru_stime
        with contextlib.suppress(ConnectionError):
            ended.handle.send(END.pack(os.waitstatus_to_exitcode(status), cpu_s, ended.is_over_memory))
        ended.handle.close()

    def _end_those_beyond_memory(self) -> None:
        limits = {running.seen_pid: running.memory_bytes for running in self._running.values()}
        over = memory.beyond(self._proc, limits)
        for running in self._running.values():
            if running.seen_pid in over:
                running.is_over_memory = True
                os.kill(running.pid, signal.SIGKILL)

    def _offer_to_the_oom_killer(self, score: int) -> None:
        """When memory runs out, a program is killed first, then a zygote, the trainer last."""
        fd = os.open("self/oom_score_adj", os.O_WRONLY, dir_fd=self._proc)
        os.write(fd, b"%d" % score)
        os.close(fd)

    def _landlock(self, visible: list[str]) -> tuple[int, int | None]:
        """Return the kernel's version of Landlock and a ruleset. Namespaces can do without: 0 and None."""
        try:
            version = landlock.abi()
        except OSError:
            if not self._isolates:
                raise
            return 0, None
        rules = landlock.ruleset(
            readable=["/"] if self._isolates else visible,
            writable=[namespaces.SCRATCH_PARENT] if self._isolates else [],
            devices=namespaces.DEVICES,
        )
        return version, rules

    def _become_program(self, request_fd: int, stdout: int, stderr: int, channel: int | None = None) -> NoReturn:
        # Our own failures are reported in the file of the request, which the program never has.
        report = fcntl.fcntl(request_fd, fcntl.F_DUPFD, _CHANNEL_FD + 1)
        try:
            code = self._confine(report, stdout, stderr, channel)
        except BaseException as error:
            os.pwrite(report, UNCONFINED + repr(error).encode(), 0)
            os._exit(1)
        os.close(report)
        program.main(code, None if channel is None else (_CHANNEL_FD, _CHANNEL_FD))

    def _confine(self, request_fd: int, stdout: int, stderr: int, channel: int | None) -> str:
        """Take on every restriction. Return the program's text."""
        self._offer_to_the_oom_killer(1000)
        with open(request_fd, "rb", closefd=False) as file:
            request = json.load(file)
        bounds = request["limits"]
        text = request["stdin"].encode(errors="surrogatepass")
        stdin = namespaces.own_scratch(text, bounds["file_mib"]) if self._isolates else _sealed(text)
        os.setsid()
        for source, target in ((stdin, 0), (stdout, 1), (stderr, 2), (channel, _CHANNEL_FD)):
            if source is not None:
                os.dup2(source, target)
        if self._rules is not None:
            landlock.restrict(self._rules)
        os.closerange(_CHANNEL_FD + (channel is not None), request_fd)
        os.closerange(request_fd + 1, _BEYOND_ALL_FDS)
        limits.apply(bounds, base_bytes=self._base_bytes, other_tasks=self._other_tasks)
        kernel.install_filter(self._filter if self._isolates else seccomp.shared(os.getpid()))
        return request["code"]


def _sealed(text: bytes) -> int:
    """Return a file in memory that cannot be changed, because no limit would count its pages."""
    fd = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(text)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _import(modules: Iterable[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):  # then a program that wants it fails on its own
            importlib.import_module(name)
