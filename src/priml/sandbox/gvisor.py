"""One gVisor container per program, with a kernel of its own: the machine's kernel is out of reach.

It takes about a second of processor time to start, needs `runsc` on the path, and works without root.
"""

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from priml.sandbox import interpreter
from priml.sandbox.base import Limits, SandboxUnavailable
from priml.sandbox.child import SHM_KIB, ChildSandbox, Launch

_CAPABILITIES = ["CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID"]  # to hide /proc and become nobody
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


class GvisorSandbox(ChildSandbox):
    """Implements `Sandbox` with `runsc run`: a root folder of only what an interpreter needs, without a network."""

    level = "a gVisor container for each program"

    def __init__(self, *, workers: int | None = None) -> None:
        super().__init__(workers)
        programs = [shutil.which(name) for name in ("setpriv", "runsc")]
        if None in programs:
            raise SandboxUnavailable("gVisor is not installed: needs runsc and setpriv (of util-linux) on the path")
        setpriv, runsc = (str(program) for program in programs)
        self._folder = tempfile.TemporaryDirectory(prefix="priml-sandbox-")
        root = [] if os.getuid() == 0 else ["--rootless"]  # root itself starts containers as nobody
        state = ["--root", f"{self._folder.name}/state"]
        options = ["--ignore-cgroups", "--network=none", "--host-uds=none", *root, *state]
        self._runsc = [setpriv, "--pdeathsig", "KILL", runsc, *options]
        (Path(self._folder.name) / "root").mkdir()

    def close(self) -> None:
        self._folder.cleanup()

    def _launch(self, start: dict[str, Any], limits: Limits) -> Launch:
        name = uuid4().hex
        start |= {"path": [interpreter.inside(path) for path in interpreter.packages()], "is_first": True}
        bundle = Path(self._folder.name) / name
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._spec(start, limits)))
        release = partial(shutil.rmtree, bundle, ignore_errors=True)
        return Launch([*self._runsc, "run", "--bundle", str(bundle), name], release=release)

    def _spec(self, start: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """The container, as the OCI runtime specification describes one."""
        scratch = {"/tmp": 1024 * limits.file_mib - SHM_KIB, "/dev/shm": SHM_KIB}
        mounts = [
            _mount(path, "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", f"size={kib}k"])
            for path, kib in scratch.items()
        ]
        mounts += [_mount("/proc", "proc", "proc", [])]
        mounts += [_mount(interpreter.inside(path), "bind", path, ["rbind", "ro"]) for path in interpreter.visible()]
        return {
            "ociVersion": "1.0.2",
            "root": {"path": f"{self._folder.name}/root", "readonly": True},
            "mounts": mounts,
            "hostname": "sandbox",
            "process": {
                "user": {"uid": 0, "gid": 0},  # of the container; the program is nobody
                "args": interpreter.command("alone", start, seen=interpreter.inside),
                "env": ["=".join(variable) for variable in interpreter.environment().items()],
                "cwd": "/tmp",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
                "noNewPrivileges": True,
            },
            "linux": {"namespaces": [{"type": kind} for kind in _NAMESPACES]},
        }


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}
