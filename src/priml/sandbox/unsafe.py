"""No isolation: a bare child process with resource limits. It must be asked for by name, and warns."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxResult
from priml.sandbox.process import ProcessLeash, input_file
from priml.sandbox.running import Pipes, Running

_log = logging.getLogger(__name__)
_WARNING = (
    "sandbox: unsafe-subprocess runs model-written code with your own rights: it can read and delete your files and "
    "use the network. Use `kind: auto` where `priml doctor` finds an isolation level."
)


class UnsafeSubprocess:
    """Implements `Sandbox`: one fresh interpreter per program. Limits hold; nothing else does."""

    level = "none (unsafe-subprocess)"

    def __init__(self) -> None:
        _log.warning(_WARNING)

    def run(self, code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
        """See `Sandbox`."""
        return self._start(code, stdin, limits, talks=False).to_the_end()

    def open(self, code: str, *, limits: Limits = Limits(), later: str | None = None) -> Running:  # noqa: B008
        """See `Sandbox`."""
        return self._start(code, "", limits, talks=True)

    def close(self) -> None:
        """Nothing is kept between programs."""

    def _start(self, code: str, stdin: str, limits: Limits, *, talks: bool) -> Running:
        started = time.monotonic()
        with ExitStack() as theirs, ExitStack() as ours:
            their_in, code_bytes = input_file(code, stdin)
            out, their_out = os.pipe()
            err, their_err = os.pipe()
            channel, their_channel = socket.socketpair() if talks else (None, None)
            theirs.callback(Pipes(their_out, their_err, their_channel).close)
            theirs.callback(os.close, their_in)
            ours.callback(Pipes(out, err, channel).close)
            start = {
                "path": interpreter.packages(),
                "limits": asdict(limits),
                "code_bytes": code_bytes,
                "channel": their_channel and their_channel.fileno(),
            }
            process = subprocess.Popen(
                interpreter.command("alone", start),
                stdin=their_in,
                stdout=their_out,
                stderr=their_err,
                pass_fds=[their_channel.fileno()] if their_channel else [],
                env=interpreter.environment(),
                cwd=tempfile.gettempdir(),
                start_new_session=True,
            )
            ours.pop_all()
        return Running(ProcessLeash(process), Pipes(out, err, channel), limits, started=started)
