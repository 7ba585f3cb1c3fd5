"""Ctrl-C, the SIGTERM of cluster schedulers and the SIGHUP of a closed terminal, as a request that the run answers
between two steps."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """While entered, the first signal sets `requested` and the second raises `KeyboardInterrupt` at once.

    Outside the main thread, where Python allows no signal handlers, it never gets requested.
    """

    def __init__(self, notice: str) -> None:
        """`notice` is written to stderr at the first signal: what will happen, and when."""
        self._notice = notice
        self._previous: dict[signal.Signals, Any] = {}
        self.requested = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            # What is ignored stays so: SIGHUP under nohup.
            heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # Not print: a handler may run in the middle of another write to the same buffer, which Python refuses.
        with suppress(OSError):  # nobody reads it any more
            os.write(2, f"\n{signal.Signals(number).name}: {self._notice} Once more stops now, unsaved.\n".encode())
