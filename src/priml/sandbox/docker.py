"""One Docker container per program: slow to start (a good part of a second), strong, and for systems without Linux."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from contextlib import ExitStack
from dataclasses import asdict, replace
from signal import SIGKILL
from uuid import uuid4

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxLost, SandboxResult, SandboxUnavailable
from priml.sandbox.process import ProcessLeash, input_file
from priml.sandbox.running import End, Pipes, Running

DEFAULT_IMAGE = "python:3.11-slim"
"""Without numpy and sympy. An image of your own needs only `python` of version 3.11 or newer on its path."""

_GUEST = "/guest"
_SPARE_MIB = 128  # for the interpreter itself; the limit on a program's address space is set inside
_DOCKERS_OWN = (125, 126, 127)  # exit codes: the daemon failed, the command cannot be run, or is not there
_SIGNALLED = 128


class DockerSandbox:
    """Implements `Sandbox` with `docker run`, on the daemon that the `docker` command talks to."""

    def __init__(self, image: str = DEFAULT_IMAGE, *, workers: int | None = None) -> None:
        program = shutil.which("docker")
        if program is None:
            raise SandboxUnavailable("docker is not installed")
        self._docker = program
        self._image = image
        self._turn = threading.BoundedSemaphore(workers or os.cpu_count() or 1)
        self.level = f"a Docker container of {image} for each program"
        # Now, not within the time limit of the first program; and this is how a missing daemon is found out.
        told = subprocess.run([program, "image", "inspect", image], capture_output=True, text=True)
        if told.returncode != 0:
            reason = told.stderr.strip().rpartition("\n")[2]
            raise SandboxUnavailable(f"{reason}; start the daemon, and type: docker pull {image}")

    def run(self, code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
        """See `Sandbox`."""
        with self._turn, ExitStack() as theirs, ExitStack() as ours:
            their_in, code_bytes = input_file(code, stdin)
            out, their_out = os.pipe()
            err, their_err = os.pipe()
            theirs.callback(Pipes(their_out, their_err).close)
            theirs.callback(os.close, their_in)
            ours.callback(Pipes(out, err).close)
            leash = self._start(code_bytes, limits, (their_in, their_out, their_err), channel=None)
            ours.pop_all()
            theirs.close()
            return Running(leash, Pipes(out, err), limits).to_the_end()

    def open(self, code: str, *, limits: Limits = Limits(), later: str | None = None) -> Running:  # noqa: B008
        """See `Sandbox`. What the program prints is all in `stderr`: its standard output carries the conversation."""
        text = code.encode("utf-8", "surrogatepass")
        with ExitStack() as theirs, ExitStack() as ours:
            out, their_out = os.pipe()
            err, their_err = os.pipe()
            channel, their_channel = socket.socketpair()
            theirs.callback(Pipes(their_out, their_err, their_channel).close)
            ours.callback(Pipes(out, err, channel).close)
            stdio = (their_channel.fileno(), their_channel.fileno(), their_err)
            leash = self._start(len(text), limits, stdio, channel="stdio")
            ours.pop_all()
        running = Running(leash, Pipes(out, err, channel), limits)
        running.send_ahead(text)
        return running

    def close(self) -> None:
        """Nothing is kept between programs."""

    def _start(self, code_bytes: int, limits: Limits, stdio: tuple[int, int, int], channel: str | None) -> ProcessLeash:
        name = f"priml-sandbox-{uuid4().hex}"
        start = {"path": [], "limits": asdict(limits), "code_bytes": code_bytes, "channel": channel}
        process = subprocess.Popen(
            [*self._command(name, limits), "python", *interpreter.arguments("alone", start, guest=_GUEST)],
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            start_new_session=True,
        )

        is_killed = threading.Event()

        def also_kill() -> None:
            is_killed.set()
            subprocess.run([self._docker, "kill", name], capture_output=True)

        def end_of(end: End) -> End:
            return end if is_killed.is_set() else _end(end, limits)

        return ProcessLeash(process, end_of=end_of, also_kill=also_kill)

    def _command(self, name: str, limits: Limits) -> list[str]:
        memory = f"{limits.memory_mib + limits.file_mib + _SPARE_MIB}m"
        options = ["--rm", "--interactive", "--init", "--name", name, "--network", "none", "--read-only"]
        options += ["--user", "65534:65534", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--memory", memory, "--memory-swap", memory, "--pids-limit", str(limits.processes + 1)]
        options += ["--tmpfs", f"/tmp:size={limits.file_mib}m,mode=1777", "--workdir", "/tmp", "--shm-size", "1m"]
        for variable in interpreter.environment().items():
            options += ["--env", "=".join(variable)]
        options += ["--mount", f"type=bind,src={interpreter.GUEST},dst={_GUEST}/guest,readonly"]
        return [self._docker, "run", *options, self._image]


def _end(end: End, limits: Limits) -> End:
    """What the `docker` command's exit code says of the program."""
    if end.exit_code in _DOCKERS_OWN or end.exit_code < 0:
        raise SandboxLost(f"sandbox: docker could not run a program (exit code {end.exit_code})")
    if end.exit_code > _SIGNALLED:
        # Processor time is not told. The program's memory is bounded apart, so SIGKILL means the limit on that time.
        spent = float(limits.cpu_s) if end.exit_code == _SIGNALLED + SIGKILL else 0.0
        return replace(end, exit_code=_SIGNALLED - end.exit_code, cpu_s=spent)
    return replace(end, cpu_s=0.0)
