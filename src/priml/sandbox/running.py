"""Our side of one program that is running: its output, its limits, the conversation with it, its end."""

import os
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGKILL
from typing import Protocol, Self

from priml.sandbox.base import Limits, ProgramEnded, SandboxLost, SandboxResult, Status

_CHUNK = 1 << 16
_HEADER = 4
GRACE_S = 10.0
"""Seconds that a killed program has to end. After them its sandbox is lost."""


@dataclass(frozen=True, slots=True)
class End:
    """What the kernel reports about a program that ended."""

    exit_code: int
    """Negative: the signal that ended it."""
    cpu_s: float
    is_over_memory: bool = False
    """Whether it was killed because its processes together used more than the limit."""


class ProcessHandle(Protocol):
    """How to end a program and wait for it. Each way of starting programs has its own handle."""

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when the program has ended or was lost."""
        ...

    def kill(self) -> None:
        """End the program and all that it started. Harmless when it has ended."""
        ...

    def wait(self) -> End:
        """Return how it ended, once `fileno` is readable. Raises `SandboxLost`."""
        ...

    def release(self) -> None:
        """Free what belongs to the handle. Called once, last."""
        ...


@dataclass(frozen=True, slots=True)
class Pipes:
    """One side's ends of a program's files."""

    stdout: int
    stderr: int
    channel: socket.socket | None = None

    @classmethod
    def pairs(cls, *, talks: bool) -> tuple[Self, Self]:
        """Return our ends and the program's, with a channel if the program `talks`."""
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        channel, their_channel = socket.socketpair() if talks else (None, None)
        return cls(out, err, channel), cls(their_out, their_err, their_channel)

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)
        if self.channel is not None:
            self.channel.close()


class Running:
    """A program between its start and its end; implements `Session`. One thread at a time.

    `first_bytes` go through the channel before the first message. `start_mark` is what our own code writes to the
    program's standard error before the program starts. It is cut off; without it the program never started, and the
    sandbox is lost. The instance closes `pipes`.
    """

    def __init__(
        self,
        handle: ProcessHandle,
        pipes: Pipes,
        limits: Limits,
        *,
        started: float,
        first_bytes: bytes = b"",
        start_mark: bytes = b"",
    ) -> None:
        self._handle = handle
        self._channel = pipes.channel
        self._limits = limits
        self._started = started
        self._start_mark = start_mark
        self._output: dict[int, bytearray] = {pipes.stdout: bytearray(), pipes.stderr: bytearray()}
        self._pipes = pipes
        self._open_outputs = set(self._output)
        self._is_channel_open = self._channel is not None
        self._outgoing = memoryview(first_bytes)
        self._incoming = bytearray()
        self._ended_by_us: Status | None = None
        self._result: SandboxResult | None = None
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(handle.fileno(), select.POLLIN)
        for fd in self._output:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
        if self._channel is not None:
            self._channel.setblocking(False)
            self._poll.register(self._channel, select.POLLIN)

    def wait(self) -> SandboxResult:
        """Return the result, once the program ends or hits a limit."""
        try:
            self._pump(self._started + self._limits.wall_s)
        finally:
            self.close()
        assert self._result is not None, "a pump without a conversation stops only at the end of the program"
        return self._result

    def ask(self, message: bytes, *, wall_s: float | None = None) -> bytes:
        if self._is_closed and self._result is None:
            raise ValueError("this session is closed")
        if self._result is not None:
            raise ProgramEnded(self._result)
        assert self._channel is not None, "a program was started without a channel"
        self._outgoing = memoryview(bytes(self._outgoing) + len(message).to_bytes(_HEADER, "big") + message)
        self._watch_channel()
        try:
            self._pump(time.monotonic() + (self._limits.wall_s if wall_s is None else wall_s))
        except BaseException:
            self.close()
            raise
        if self._has_reply():  # even if the program has ended since
            end = _HEADER + self._reply_bytes()
            reply = bytes(self._incoming[_HEADER:end])
            del self._incoming[:end]
            return reply
        assert self._result is not None, "a pump stops at a reply or at the end of the program"
        self.close()
        raise ProgramEnded(self._result)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._result is None:
            self._handle.kill()
        self._handle.release()
        self._pipes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _pump(self, deadline: float) -> None:
        """Move bytes until there is a reply or the program has ended (then `_result` is set)."""
        while not self._has_reply():
            events = dict(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not events:
                if self._ended_by_us is not None:
                    raise SandboxLost("sandbox: a program that was killed did not end")
                self._kill("time limit")
            for fd in self._open_outputs & events.keys():
                self._read_output(fd)
            if self._channel is not None and (event := events.get(self._channel.fileno())):
                self._serve_channel(self._channel, event)
            if self._ended_by_us is None and self._is_beyond_output():
                self._kill("output limit")
            if self._ended_by_us is not None:
                deadline = max(deadline, time.monotonic() + GRACE_S)
            if self._handle.fileno() in events:
                self._result = self._conclude()
                return

    def _kill(self, why: Status) -> None:
        self._ended_by_us = why
        self._handle.kill()

    def _conclude(self) -> SandboxResult:
        end = self._handle.wait()
        if end.is_over_memory:
            self._ended_by_us = self._ended_by_us or "memory limit"
        self._drain_channel()
        for fd in self._output:  # the writers are gone
            while self._read_output(fd) and not self._is_beyond_output():
                pass
        if self._ended_by_us is None and self._is_beyond_output():
            self._ended_by_us = "output limit"
        seconds = time.monotonic() - self._started
        limit = self._limits.output_bytes
        stdout = self._output[self._pipes.stdout][:limit].decode(errors="replace")
        stderr = self._stderr(end)[:limit].decode(errors="replace")
        status = self._ended_by_us or _status(end, stderr, self._limits)
        return SandboxResult(status, None if self._ended_by_us else end.exit_code, stdout, stderr, seconds)

    def _stderr(self, end: End) -> bytes:
        written = bytes(self._output[self._pipes.stderr])
        if not self._start_mark:
            return written
        before, mark, after = written.partition(self._start_mark)
        if not mark and self._ended_by_us is None:
            reason = before.decode(errors="replace").strip().rpartition("\n")[2]
            raise SandboxLost(f"sandbox: a program was not started (exit code {end.exit_code}): {reason}")
        return after

    def _drain_channel(self) -> None:
        with suppress(ConnectionError):
            while self._channel and self._is_channel_open and not self._is_beyond_output():
                before = len(self._incoming)
                self._is_channel_open = self._read_channel(self._channel)
                if len(self._incoming) == before:
                    return

    def _read_output(self, fd: int) -> bool:
        """Read what there is. Return False if there was nothing."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data and fd in self._open_outputs:
            self._open_outputs.remove(fd)
            self._poll.unregister(fd)
        self._output[fd] += data
        return bool(data)

    def _is_beyond_output(self) -> bool:
        limit = self._limits.output_bytes
        written = sum(map(len, self._output.values())) - len(self._start_mark)
        return written > limit or self._reply_bytes() > limit

    def _serve_channel(self, channel: socket.socket, event: int) -> None:
        try:
            if event & select.POLLOUT:
                self._outgoing = self._outgoing[channel.send(self._outgoing) :]
            if event & ~select.POLLOUT and not self._read_channel(channel):
                self._is_channel_open = False  # the program closed its end: there will be no reply
        except ConnectionError:  # likewise, with a request unread
            self._is_channel_open = False
        self._watch_channel()

    def _read_channel(self, channel: socket.socket) -> bool:
        """Read what there is. Return whether there may be more later."""
        try:
            data = channel.recv(_CHUNK)
        except BlockingIOError:
            return True
        self._incoming += data
        return bool(data)

    def _watch_channel(self) -> None:
        assert self._channel is not None
        if self._is_channel_open:
            self._poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        else:
            with suppress(KeyError):  # not registered any more
                self._poll.unregister(self._channel)

    def _reply_bytes(self) -> int:
        """Return the length of the reply that is coming in."""
        return int.from_bytes(self._incoming[:_HEADER], "big") if len(self._incoming) >= _HEADER else 0

    def _has_reply(self) -> bool:
        is_whole = len(self._incoming) >= _HEADER + self._reply_bytes()
        return is_whole and not self._outgoing and self._reply_bytes() <= self._limits.output_bytes


def _status(end: End, stderr: str, limits: Limits) -> Status:
    # The kernel counts whole ticks against the limit but reports exact time, which is far less on a busy machine.
    if end.exit_code == -SIGKILL and end.cpu_s >= limits.cpu_s / 2:
        return "time limit"
    if end.exit_code < 0:
        return "crash"
    return "memory limit" if is_memory_error(end.exit_code, stderr) else "finished"


def is_memory_error(exit_code: int, stderr: str) -> bool:
    """Return whether a program seems to have died of a MemoryError. Pretending so gains a program nothing."""
    return exit_code == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError")
