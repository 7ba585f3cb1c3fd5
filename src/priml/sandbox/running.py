"""Our side of one program that is running: its output, its limits, the conversation with it, its end."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGKILL
from types import TracebackType
from typing import Protocol, Self

from priml.sandbox.base import Limits, ProgramOver, SandboxLost, SandboxResult, Status

_CHUNK = 1 << 16
_HEADER = 4
GRACE_S = 10.0
"""Between killing a program and giving its sandbox up for lost."""


@dataclass(frozen=True, slots=True)
class End:
    """What the kernel says of a program that ended."""

    exit_code: int
    """Negative: the signal that ended it."""
    cpu_s: float


class Leash(Protocol):
    """How a program is ended and awaited; each way of starting programs has its own."""

    def fileno(self) -> int:
        """A file descriptor that becomes readable when the program is over, or was lost."""
        ...

    def kill(self) -> None:
        """End the program and all that it started. Harmless when it is over."""
        ...

    def wait(self) -> End:
        """How it ended, once `fileno` is readable. Raises `SandboxLost`."""
        ...

    def release(self) -> None:
        """Called once, last: the program is over, `wait` was called or is no longer of interest."""
        ...


@dataclass(frozen=True, slots=True)
class Pipes:
    """Our ends of a program's files. They are closed by `Running`."""

    stdout: int
    stderr: int
    channel: socket.socket | None = None

    def close(self) -> None:
        """All of them."""
        os.close(self.stdout)
        os.close(self.stderr)
        if self.channel is not None:
            self.channel.close()


class Running:
    """A program between its start and its end. One thread at a time."""

    def __init__(self, leash: Leash, pipes: Pipes, limits: Limits, *, started: float | None = None) -> None:
        self._leash = leash
        self._channel = pipes.channel
        self._limits = limits
        self._started = time.monotonic() if started is None else started
        self._output: dict[int, bytearray] = {pipes.stdout: bytearray(), pipes.stderr: bytearray()}
        self._pipes = pipes
        self._speaking = set(self._output)
        self._is_channel_open = self._channel is not None
        self._outgoing = memoryview(b"")
        self._ahead = b""
        self._incoming = bytearray()
        self._ended_by_us: Status | None = None
        self._result: SandboxResult | None = None
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(leash.fileno(), select.POLLIN)
        for fd in self._output:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
        if self._channel is not None:
            self._channel.setblocking(False)
            self._poll.register(self._channel, select.POLLIN)

    def to_the_end(self) -> SandboxResult:
        """Wait until the program ends or hits a limit."""
        try:
            self._pump(self._started + self._limits.wall_s)
        finally:
            self.close()
        assert self._result is not None, "a pump without a conversation stops only at the end of the program"
        return self._result

    def ask(self, message: bytes, *, wall_s: float | None = None) -> bytes:
        """One request, one reply; see `Session`."""
        if self._is_closed and self._result is None:
            raise ValueError("this session is closed")
        if self._result is not None:
            raise ProgramOver(self._result)
        assert self._channel is not None, "a program was started without a channel"
        self._outgoing = memoryview(self._ahead + len(message).to_bytes(_HEADER, "big") + message)
        self._ahead = b""
        self._listen_to_channel()
        try:
            self._pump(time.monotonic() + (self._limits.wall_s if wall_s is None else wall_s))
        except BaseException:
            self.close()
            raise
        if self._has_reply():  # even if these were its last words
            return self._take_reply()
        assert self._result is not None, "a pump stops at a reply or at the end of the program"
        self.close()
        raise ProgramOver(self._result)

    def send_ahead(self, data: bytes) -> None:
        """Bytes for the channel that come before the first message."""
        self._ahead = data

    def close(self) -> None:
        """End the program, wait until it is gone, and close what belonged to it."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._result is None:
            self._leash.kill()
        self._leash.release()
        self._pipes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pump(self, deadline: float) -> None:
        """Move bytes until there is a reply or the program is over (then `_result` is set)."""
        while not self._has_reply():
            events = dict(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not events:
                if self._ended_by_us is not None:
                    raise SandboxLost("sandbox: a program that was killed did not end")
                self._end("time limit")
            for fd in self._speaking & events.keys():
                self._read_output(fd)
            if self._channel is not None and (happened := events.get(self._channel.fileno())):
                self._serve_channel(happened)
            if self._ended_by_us is None and self._is_beyond_output():
                self._end("output limit")
            if self._ended_by_us is not None:
                deadline = max(deadline, time.monotonic() + GRACE_S)
            if self._leash.fileno() in events:
                self._conclude()
                return

    def _end(self, why: Status) -> None:
        self._ended_by_us = why
        self._leash.kill()

    def _conclude(self) -> None:
        end = self._leash.wait()
        self._hear_last_words()
        for fd in self._output:  # nobody is left to write more
            while self._read_output(fd) and not self._is_beyond_output():
                pass
        if self._ended_by_us is None and self._is_beyond_output():
            self._ended_by_us = "output limit"
        seconds = time.monotonic() - self._started
        out, err = (self._output[fd] for fd in (self._pipes.stdout, self._pipes.stderr))
        limit = self._limits.output_bytes
        stderr = err[:limit].decode(errors="replace")
        status = self._ended_by_us or _status(end, stderr, self._limits)
        exit_code = None if self._ended_by_us else end.exit_code
        self._result = SandboxResult(status, exit_code, out[:limit].decode(errors="replace"), stderr, seconds)

    def _hear_last_words(self) -> None:
        with suppress(ConnectionError):
            while self._is_channel_open and not self._is_beyond_output():
                before = len(self._incoming)
                self._is_channel_open = self._read_channel()
                if len(self._incoming) == before:
                    return

    def _read_output(self, fd: int) -> bool:
        """Whether there was anything."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            if fd in self._speaking:
                self._speaking.remove(fd)
                self._poll.unregister(fd)
            return False
        self._output[fd] += data
        return True

    def _is_beyond_output(self) -> bool:
        limit = self._limits.output_bytes
        return sum(map(len, self._output.values())) > limit or self._announced() > limit

    def _serve_channel(self, happened: int) -> None:
        assert self._channel is not None
        try:
            if happened & select.POLLOUT:
                self._outgoing = self._outgoing[self._channel.send(self._outgoing) :]
            if happened & ~select.POLLOUT and not self._read_channel():
                self._is_channel_open = False  # the program closed its end; its own may follow, a reply will not
        except ConnectionError:  # likewise, with a request unread
            self._is_channel_open = False
        self._listen_to_channel()

    def _read_channel(self) -> bool:
        """Whether there may be more."""
        assert self._channel is not None
        try:
            data = self._channel.recv(_CHUNK)
        except BlockingIOError:
            return True
        self._incoming += data
        return bool(data)

    def _listen_to_channel(self) -> None:
        assert self._channel is not None
        if self._is_channel_open:
            self._poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        else:
            self._poll.unregister(self._channel)

    def _announced(self) -> int:
        """The length of the reply that is coming in."""
        return int.from_bytes(self._incoming[:_HEADER], "big") if len(self._incoming) >= _HEADER else 0

    def _has_reply(self) -> bool:
        is_whole = len(self._incoming) >= _HEADER + self._announced()
        return is_whole and not self._outgoing and self._announced() <= self._limits.output_bytes

    def _take_reply(self) -> bytes:
        end = _HEADER + self._announced()
        reply = bytes(self._incoming[_HEADER:end])
        del self._incoming[:end]
        return reply


def _status(end: End, stderr: str, limits: Limits) -> Status:
    # The kernel counts whole ticks against the limit, and tells us the exact time: on a busy machine that is far less.
    if end.exit_code == -SIGKILL and end.cpu_s >= limits.cpu_s / 2:
        return "time limit"
    if end.exit_code < 0:
        return "crash"
    return "memory limit" if is_memory_error(end.exit_code, stderr) else "finished"


def is_memory_error(exit_code: int, stderr: str) -> bool:
    """Whether a program seems to have died of an uncaught MemoryError. It may pretend so, which gains it nothing."""
    return exit_code == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError")
