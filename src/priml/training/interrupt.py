"""Ctrl-C, the SIGTERM of cluster schedulers and the SIGHUP of a closed terminal, as a request that the run answers
where nothing is lost by it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StepAborted(BaseException):
    """A signal came before the step had changed anything. Not an `Exception`, which others may catch and keep."""


class Interruption:
    """While entered, the first signal sets `requested` and the second raises `KeyboardInterrupt` at once.

    Between `allow_abort` and `forbid_abort` the first signal raises `StepAborted`, too: what was computed there is
    computed again when the run goes on. Elsewhere it leaves a step `within_s` seconds to end, and then raises
    `KeyboardInterrupt`.

    Outside the main thread, where Python allows no signal handlers, it never gets requested.
    """

    def __init__(self, notice: str, *, within_s: float | None = None) -> None:
        """`notice` is written to stderr at the first signal: what will happen, and when. `within_s` None: no limit."""
        self._notice = notice
        self._within_s = within_s
        self._previous: dict[signal.Signals, Any] = {}
        self._may_abort = False
        self.requested = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # What is ignored stays so: SIGHUP under nohup.
            heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._on_signal) for number in heeded}
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_limit)
        return self

    def allow_abort(self) -> None:
        """From here on, all that is worth keeping has been computed before."""
        self._may_abort = True
        if self.requested:
            raise StepAborted

    def forbid_abort(self) -> None:
        """From here on, weights or records change. Said again in the same step, it changes nothing: a signal that came
        while the PRM learned must not end the step before the policy has."""
        could_abort, self._may_abort = self._may_abort, False
        if could_abort and self.requested:
            raise StepAborted

    def lift_limit(self) -> None:
        """What has begun may take as long as it does: it saves the run."""
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def __exit__(self, *exc: object) -> None:
        self.lift_limit()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._write(f"{signal.Signals(number).name}: {self._notice} Once more stops now, unsaved.")
        if self._within_s is not None:
            signal.setitimer(signal.ITIMER_REAL, self._within_s)
        if self._may_abort:
            self._may_abort = False
            raise StepAborted

    def _on_limit(self, number: int, frame: FrameType | None) -> None:
        self._write(f"this step has not ended within {self._within_s:g} s: stopping without it.")
        raise KeyboardInterrupt

    def _write(self, text: str) -> None:
        # Not print: a handler may run in the middle of another write to the same buffer, which Python refuses.
        with suppress(OSError):  # nobody reads it any more
            os.write(2, f"\n{text}\n".encode())
