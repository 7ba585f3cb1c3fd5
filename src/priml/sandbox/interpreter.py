"""Which interpreter runs inside, and which folders of this machine it needs to see."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

GUEST = Path(__file__).resolve().parent / "guest"
"""The code of ours that runs inside, standard library only."""
_SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/usr/share/zoneinfo")
"""Shared libraries and, for a system's own Python, its standard library."""
_TAKEN = ("/tmp/", "/run/", "/dev/", "/proc/")
_ASIDE = "/opt/aside"


def executable() -> str:
    """The real interpreter: neither a version manager's shim, which starts slowly, nor a virtual environment's link.

    That link would run its `.pth` files, which may lead out to a developer's source tree.
    """
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def inside(path: str) -> str:
    """Where a file of this machine is shown to programs: where it is, unless programs have things of their own there.

    A checkout may well lie below `/tmp`.
    """
    return _ASIDE + path if path.startswith(_TAKEN) else path


def command(module: str, start: dict[str, Any], *, place: Callable[[str], str] = str) -> list[str]:
    """The command line that calls `main` of a module of `guest` with `start`, sent as JSON.

    `place` says where our files are, seen from where the command will run. No `site`, no user folder, no current
    folder. `-E` is not among the flags: the environment is ours, and fixes the order of sets, so that a program behaves
    the same every time.
    """
    return [place(executable()), *arguments(module, start, guest=place(str(GUEST.parent)))]


def arguments(module: str, start: dict[str, Any], *, guest: str) -> list[str]:
    """The same without the interpreter; `guest` is the folder that holds the package of that name."""
    boot = f"import json, sys; sys.path.insert(0, sys.argv[1]); from guest.{module} import main; "
    boot += "main(json.loads(sys.argv[2]))"
    return ["-s", "-S", "-P", "-X", "utf8", "-c", boot, guest, json.dumps(start)]


def environment() -> dict[str, str]:
    """All of the environment that a program sees. One thread per program: there are as many programs as cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **threads}


def packages() -> list[str]:
    """Folders of installed packages, for `sys.path` inside."""
    found = (sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    return list(dict.fromkeys(os.path.realpath(path) for path in found if os.path.isdir(path)))


def visible() -> list[str]:
    """Files and folders that the interpreter needs, to be shown read-only. Nobody's home is in it."""
    base = os.path.realpath(sys.base_prefix)
    own = [executable(), sysconfig.get_path("stdlib")] if base in ("/usr", "/usr/local") else [base]
    system = [path for path in (*_SYSTEM, "/etc/ld.so.cache") if os.path.exists(path)]
    return list(dict.fromkeys([*system, *own, *packages(), str(GUEST)]))
