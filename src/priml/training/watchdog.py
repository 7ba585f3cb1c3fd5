"""A watch on the phases of a run: one that does not get on is named, its stacks are kept, and the run stops."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from priml.errors import RunError

_LAST_S = 60.0
"""After the signal and the time that a step has to end: then the process ends at once."""
_STACKS = "stacks.txt"
_STDERR = 2


class Watchdog:
    """While entered, each phase must end, or begin another one, within `limit_s` seconds; None: any time.

    Over the limit the stacks of all threads go to `stacks.txt` in the folder, with the processes below this one. Then
    this process gets SIGTERM, which saves the last finished step where one may be saved. If it has not ended
    `stop_within_s` and a minute later, it ends at once, as if it had been killed. Code that lets no other thread run
    (a regular expression) is ended by then, too.
    """

    def __init__(self, limit_s: float | None, *, stop_within_s: float) -> None:
        self._limit_s = limit_s
        self._stop_within_s = stop_within_s
        self._folder: Path | None = None
        self._phase = "start"
        self._began = time.monotonic()
        self._done = threading.Event()
        self.reason: str | None = None
        """What went over the limit, once something has."""

    def __enter__(self) -> Watchdog:
        global _current  # a process has one, as it has one main thread
        _current = self
        self.beat("start")
        if self._limit_s is not None:
            threading.Thread(target=self._watch, args=(self._limit_s,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        global _current
        _current = None
        self._done.set()
        if self._limit_s is not None:
            faulthandler.cancel_dump_traceback_later()

    def beat(self, phase: str) -> None:
        """A phase begins, or goes on after another one inside it."""
        self._phase, self._began = phase, time.monotonic()
        if self._limit_s is not None:
            faulthandler.dump_traceback_later(
                self._limit_s + self._stop_within_s + 2 * _LAST_S, exit=True, file=_STDERR
            )

    def writes_to(self, folder: Path) -> None:
        """From now on there is a run folder."""
        self._folder = folder

    def _watch(self, limit_s: float) -> None:
        while (left := self._began + limit_s - time.monotonic()) > 0:
            if self._done.wait(min(left, limit_s / 4)):
                return
        place = self._write_stacks()
        self.reason = f"the phase {self._phase!r} has not got on for {limit_s:g} s; the stacks are in {place}"
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._done.wait(self._stop_within_s + _LAST_S):
            with suppress(OSError):
                os.write(2, f"\npriml: {self.reason}; it did not answer a signal: ended at once\n".encode())
            os._exit(1)

    def _write_stacks(self) -> str:
        if self._folder is None:
            faulthandler.dump_traceback(_STDERR)
            return "the lines above"
        path = self._folder / _STACKS
        with path.open("w", encoding="utf-8") as file:
            file.write(f"phase {self._phase}\n\n")
            file.flush()
            faulthandler.dump_traceback(file)
            file.write("\nprocesses below this one: id, state, what it waits for in the kernel, command\n")
            file.writelines(_processes_below(os.getpid()))
        return str(path)


_current: Watchdog | None = None


def beat(phase: str) -> None:
    """A phase of this process begins, or goes on. Nothing happens where nobody watches."""
    if _current is not None:
        _current.beat(phase)


def keep_stacks_in(folder: Path) -> None:
    """From now on there is a run folder."""
    if _current is not None:
        _current.writes_to(folder)


@contextmanager
def watched(limit_s: float | None, *, stop_within_s: float, next_move: Callable[[], str]) -> Iterator[None]:
    """Watch what is inside, in this process (`Watchdog`). `next_move` is asked when a phase hangs.

    Raises:
        RunError: a phase went over the limit. It replaces what the signal made.
    """
    with Watchdog(limit_s, stop_within_s=stop_within_s) as watchdog:
        try:
            yield
        except BaseException as error:
            if watchdog.reason is None:
                raise
            raise RunError(f"{watchdog.reason}; {next_move()}") from error


def _processes_below(parent: int) -> Iterator[str]:
    """A line for each, as far as the system tells. Their own stacks can be had with py-spy or gdb."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            name, state, above = path.parent.name, *path.read_text().rpartition(")")[2].split()[:2]
            if int(above) == parent:
                command = (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                yield f"{name} {state} {(path.parent / 'wchan').read_text()} {command[:200]}\n"
                yield from _processes_below(int(name))
