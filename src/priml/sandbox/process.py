"""Programs that are child processes of ours, each in an interpreter of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress

from priml.sandbox.base import SandboxLost
from priml.sandbox.running import End


class ProcessLeash:
    """A child that leads a session of its own; a thread waits for it, as not every system has a descriptor for that.

    `end_of` may correct how it ended; `also_kill` ends what does not die with it.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        end_of: Callable[[End], End] = lambda end: end,
        also_kill: Callable[[], None] = lambda: None,
    ) -> None:
        self._process = process
        self._end_of = end_of
        self._also_kill = also_kill
        self._over, announce = os.pipe()
        self._end: End | None = None
        self._waiter = threading.Thread(target=self._await, args=(announce,), daemon=True)
        self._waiter.start()

    def fileno(self) -> int:
        """See `Leash`."""
        return self._over

    def kill(self) -> None:
        """See `Leash`."""
        if self._end is None:
            self._also_kill()
            self._kill_group()

    def wait(self) -> End:
        """See `Leash`."""
        self._waiter.join()
        if self._end is None:
            raise SandboxLost("sandbox: a child process was reaped by someone else (a SIGCHLD handler of yours?)")
        return self._end_of(self._end)

    def release(self) -> None:
        """See `Leash`."""
        self._waiter.join()
        os.close(self._over)

    def _await(self, announce: int) -> None:
        try:
            if sys.platform != "darwin":
                # Without reaping it yet: so long as the number is ours, a kill of the group cannot hit a stranger.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                self._kill_group()
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._end = End(self._process.returncode, usage.ru_utime + usage.ru_stime)
        except ChildProcessError:
            pass  # `wait` tells
        finally:
            os.close(announce)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS says so of a dead group
            os.killpg(self._process.pid, signal.SIGKILL)


def input_file(*parts: str) -> tuple[int, int]:
    """A file without a name that holds the parts, open at its beginning, and the length of the first part in bytes."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(encoded))
        file.flush()
        file.seek(0)
        return os.dup(file.fileno()), len(encoded[0])
