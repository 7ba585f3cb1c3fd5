"""One Docker container per program: strong, and for systems without Linux. It takes most of a second to start."""

import shutil
import subprocess
from functools import partial
from typing import Any
from uuid import uuid4

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxUnavailable
from priml.sandbox.child import SHM_KIB, ChildSandbox, Launch

DEFAULT_IMAGE = "python:3.11-slim"
"""Without numpy and sympy. An image of your own needs only `python` of version 3.11 or newer on its path."""

_GUEST = "/guest"
_SPARE_MIB = 128  # for the interpreter itself; the limit on a program's address space is set inside


class DockerSandbox(ChildSandbox):
    """Implements `Sandbox` with `docker run`, on the daemon that the `docker` command talks to."""

    def __init__(self, image: str = DEFAULT_IMAGE, *, workers: int | None = None) -> None:
        super().__init__(workers)
        program = shutil.which("docker")
        if program is None:
            raise SandboxUnavailable("docker is not installed")
        self._docker = program
        self._image = image
        self.level = f"a Docker container of {image} for each program"
        # Pulled now, not within the time limit of the first program. This also finds a missing daemon.
        inspected = subprocess.run([program, "image", "inspect", image], capture_output=True, text=True)
        if inspected.returncode != 0:
            reason = inspected.stderr.strip().rpartition("\n")[2]
            raise SandboxUnavailable(f"{reason}; start the daemon, and type: docker pull {image}")

    def _launch(self, start: dict[str, Any], limits: Limits) -> Launch:
        name = f"priml-sandbox-{uuid4().hex}"
        guest = interpreter.arguments("alone", {**start, "path": []}, guest=_GUEST)
        kill = partial(subprocess.run, [self._docker, "kill", name], capture_output=True)
        return Launch([*self._command(name, limits), "python", *guest], kill=kill)

    def _command(self, name: str, limits: Limits) -> list[str]:
        memory = f"{limits.memory_mib + limits.file_mib + _SPARE_MIB}m"
        options = ["--rm", "--interactive", "--init", "--name", name, "--network", "none", "--read-only"]
        options += ["--user", "65534:65534", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--memory", memory, "--memory-swap", memory, "--pids-limit", str(limits.processes + 1)]
        options += ["--tmpfs", f"/tmp:size={1024 * limits.file_mib - SHM_KIB}k,mode=1777", "--workdir", "/tmp"]
        options += ["--shm-size", f"{SHM_KIB}k"]
        for variable in interpreter.environment().items():
            options += ["--env", "=".join(variable)]
        options += ["--mount", f"type=bind,src={interpreter.GUEST},dst={_GUEST}/guest,readonly"]
        return [self._docker, "run", *options, self._image]
