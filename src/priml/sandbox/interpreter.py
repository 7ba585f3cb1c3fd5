"""The interpreter that runs inside, and the folders of this machine that it needs."""

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
    """Return the real interpreter: no version manager's shim, which starts slowly, and no virtual environment's link.

    A virtual environment would run its `.pth` files, which may lead to a developer's source tree.
    """
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def inside(path: str) -> str:
    """Return the path at which programs see a file of this machine.

    It is the same path, except below folders that programs have for themselves: a checkout may be below `/tmp`.
    """
    return _ASIDE + path if path.startswith(_TAKEN) else path


def command(module: str, start: dict[str, Any], *, seen: Callable[[str], str] = str) -> list[str]:
    """Return the command line that calls `main` of a module of `guest` with `start`, sent as JSON.

    `seen` maps a path of ours to where the command will see it. There is no `site`, no user folder and no current
    folder. `-E` is not among the flags: the environment is ours. It fixes the order of sets, so that a program behaves
    the same every time.
    """
    return [seen(executable()), *arguments(module, start, guest=seen(str(GUEST.parent)))]


def arguments(module: str, start: dict[str, Any], *, guest: str) -> list[str]:
    """Return the same without the interpreter; `guest` is the folder of the package of that name."""
    boot = f"import json, sys; sys.path.insert(0, sys.argv[1]); from guest.{module} import main; "
    boot += "main(json.loads(sys.argv[2]))"
    return ["-s", "-S", "-P", "-X", "utf8", "-c", boot, guest, json.dumps(start)]


def environment() -> dict[str, str]:
    """Return the whole environment of a program. One thread each: there are as many programs as cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **threads}


def packages() -> list[str]:
    """Return the folders of installed packages, for `sys.path` inside."""
    found = (sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    return list(dict.fromkeys(os.path.realpath(path) for path in found if os.path.isdir(path)))


def visible() -> list[str]:
    """Return the files and folders that the interpreter needs, to be shown read-only. No home folder is among them."""
    base = os.path.realpath(sys.base_prefix)
    own = [executable(), sysconfig.get_path("stdlib")] if base in ("/usr", "/usr/local") else [base]
    system = [path for path in (*_SYSTEM, "/etc/ld.so.cache") if os.path.exists(path)]
    return list(dict.fromkeys([*system, *own, *packages(), str(GUEST)]))
