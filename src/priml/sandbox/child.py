"""Sandboxes with a child process of ours for each program: an interpreter of its own, bare or in a container."""

import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from signal import SIGKILL
from typing import Any

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxLost, SandboxResult
from priml.sandbox.guest import memory
from priml.sandbox.running import End, Pipes, Running

SHM_KIB = 256
"""The part of a container's scratch in `/dev/shm`; the rest is in `/tmp`. Together they are the limit."""
_START_MARK = "priml: the program starts\n"
_SIGNALLED = 128
_ANY_NUMBER = 1 << 16
_LOOK_MS = 100
"""Between two looks at the memory of a program and its children."""
_SPARE_MIB = 256
"""For the interpreter, and for a container's own processes."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """How one program is started, and ended if killing the process group is not enough."""

    command: list[str]
    environment: Mapping[str, str] | None = None
    kill: Callable[[], object] = lambda: None
    release: Callable[[], object] = lambda: None


class ChildSandbox(ABC):
    """Implements `Sandbox`. A subclass gives the command that starts a program.

    Only standard input, output and error lead out of a container. So a conversation uses standard input and output, and
    all that the program prints is in `stderr`.
    """

    level: str
    _in_container = True

    def __init__(self, workers: int | None) -> None:
        self._turn = threading.BoundedSemaphore(workers or os.cpu_count() or 1)

    @abstractmethod
    def _launch(self, start: dict[str, Any], limits: Limits) -> Launch:
        """Return how to call `guest.alone.main` with `start`."""

    def run(self, code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
        text = _encoded(code)
        with self._turn, tempfile.TemporaryFile() as file:
            file.write(text + _encoded(stdin))
            file.seek(0)
            return self._start(len(text), file.fileno(), limits, talks=False).wait()

    def open(self, code: str, *, limits: Limits = Limits(), upcoming: str | None = None) -> Running:  # noqa: B008
        text = _encoded(code)
        return self._start(len(text), subprocess.DEVNULL, limits, talks=True, first_bytes=text)

    def close(self) -> None:  # noqa: B027 (most subclasses keep nothing between programs)
        """Do nothing."""

    def _start(self, code_bytes: int, stdin: int, limits: Limits, *, talks: bool, first_bytes: bytes = b"") -> Running:
        started = time.monotonic()
        mark = _START_MARK if self._in_container else ""
        with ExitStack() as theirs, ExitStack() as ours:
            pipes, their_pipes = Pipes.pairs(talks=talks)
            theirs.callback(their_pipes.close)
            ours.callback(pipes.close)
            stdout, channel = their_pipes.stdout, their_pipes.channel and their_pipes.channel.fileno()
            if channel is not None and self._in_container:
                stdin = stdout = channel
                channel = "stdio"
            start = {"limits": asdict(limits), "code_bytes": code_bytes, "channel": channel, "start_mark": mark}
            launch = self._launch(start, limits)
            popen = partial(
                subprocess.Popen[bytes],
                launch.command,
                stdin=stdin,
                stdout=stdout,
                stderr=their_pipes.stderr,
                pass_fds=[channel] if isinstance(channel, int) else [],
                env=launch.environment,
                cwd=tempfile.gettempdir(),
                start_new_session=True,
            )
            process = popen_from_lasting_thread(popen)
            ours.pop_all()
        handle = _ChildHandle(process, launch, limits, is_container=self._in_container)
        return Running(handle, pipes, limits, started=started, first_bytes=first_bytes, start_mark=mark.encode())


class UnsafeSubprocess(ChildSandbox):
    """Implements `Sandbox` without isolation: one fresh interpreter per program. Limits are in force, nothing else."""

    level = "none (unsafe-subprocess)"
    _in_container = False

    def __init__(self) -> None:
        super().__init__(_ANY_NUMBER)
        _log.warning(
            "sandbox: unsafe-subprocess runs model-written code with your own rights: it can read and delete your "
            "files and use the network. Use `kind: auto` where `priml doctor` finds an isolation level."
        )

    def _launch(self, start: dict[str, Any], limits: Limits) -> Launch:
        start = {**start, "path": interpreter.packages()}
        return Launch(interpreter.command("alone", start), interpreter.environment())


class _ChildHandle:
    """Implements `ProcessHandle` for a child that leads a session of its own.

    A thread waits for it, because not every system has a file descriptor for that. The exit code of a container's
    command is the program's, as a shell has it, and the processor time is unknown.
    """

    def __init__(self, process: subprocess.Popen[bytes], launch: Launch, limits: Limits, *, is_container: bool) -> None:
        self._process = process
        self._launch = launch
        self._cpu_limit_s = limits.cpu_s if is_container else None
        self._memory_bytes = (limits.memory_mib + _SPARE_MIB) << 20
        self._over, announce = os.pipe()
        self._end: End | None = None
        self._is_killed = False
        self._waiter = threading.Thread(target=self._await, args=(announce,), daemon=True)
        self._waiter.start()

    def fileno(self) -> int:
        return self._over

    def kill(self) -> None:
        if self._end is None:
            self._is_killed = True
            self._launch.kill()
            self._kill_group()

    def wait(self) -> End:
        self._waiter.join()
        if self._end is None:
            raise SandboxLost("sandbox: a child process was reaped by someone else (a SIGCHLD handler of yours?)")
        code = self._end.exit_code
        if self._cpu_limit_s is None or self._is_killed:
            return self._end
        if code < 0:
            raise SandboxLost(f"sandbox: the command of a container was killed (signal {-code})")
        if code <= _SIGNALLED:
            return End(code, 0.0)
        # Processor time is unknown. Memory has a limit of its own, so SIGKILL means the limit on processor time.
        return End(_SIGNALLED - code, float(self._cpu_limit_s) if code == _SIGNALLED + SIGKILL else 0.0)

    def release(self) -> None:
        self._waiter.join()
        os.close(self._over)
        self._launch.release()

    def _await(self, announce: int) -> None:
        is_over_memory = False
        try:
            if sys.platform == "linux":
                # Wait without reaping: while the process id is still ours, killing the group cannot hit a stranger.
                is_over_memory = self._watch_memory()
                self._kill_group()
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._end = End(self._process.returncode, usage.ru_utime + usage.ru_stime, is_over_memory)
        except ChildProcessError:
            pass  # `wait` raises
        finally:
            os.close(announce)

    def _watch_memory(self) -> bool:
        """Wait for the end. Return whether it came because the processes together held too much."""
        with ExitStack() as stack:
            pidfd, proc = os.pidfd_open(self._process.pid), os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, pidfd)
            stack.callback(os.close, proc)
            over = select.poll()
            over.register(pidfd, select.POLLIN)
            is_over_memory = False
            while not over.poll(_LOOK_MS):
                if memory.beyond(proc, {self._process.pid: self._memory_bytes}):
                    is_over_memory = True
                    self.kill()
            return is_over_memory

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, for a dead group
            os.killpg(self._process.pid, signal.SIGKILL)


def popen_from_lasting_thread(start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one.

    The kernel ends such a process when the *thread* that started it ends, and the calling thread may be short-lived.
    """
    return _lasting_thread(os.getpid()).submit(start).result()


@cache
def _lasting_thread(pid: int) -> ThreadPoolExecutor:  # one per process: a fork has none of its parent's threads
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox starter")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
