"""The three ways to confine on Linux without a service: what a zygote is started behind, and what it does itself."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from priml.sandbox import interpreter
from priml.sandbox.base import SandboxUnavailable
from priml.sandbox.guest import namespaces as inside


@dataclass(frozen=True, slots=True)
class Level:
    """One way to confine programs."""

    words: str
    """What holds, for logs."""
    wall: tuple[str, ...]
    """What comes before the zygote's own command line, which then runs behind it."""
    environment: Mapping[str, str]
    """What all of this is started with."""
    inner: Literal["namespaces", "landlock"]
    """How the zygote confines each program."""
    build_root: bool = False
    """Whether the zygote makes the root folder that programs see."""


def bubblewrap() -> Level:
    """The strongest: bubblewrap around the zygote, fresh namespaces around each program."""
    return Level("bubblewrap, and namespaces for each program", _bwrap(), {}, "namespaces")


def namespaces() -> Level:
    """The same without bubblewrap: the zygote makes its own root folder."""
    base = os.path.realpath(sys.base_prefix)
    if interpreter.inside(base) != base:
        raise SandboxUnavailable(f"the interpreter lies in {base}, where programs have files of their own; move it")
    return Level("namespaces for each program", (), interpreter.environment(), "namespaces", build_root=True)


def landlock() -> Level:
    """For containers that forbid namespaces: programs can neither write anywhere nor have children."""
    if os.getuid() == 0:
        hidden = [path for path in interpreter.visible() if not _is_open_to_all(Path(path))]
        if hidden:
            raise SandboxUnavailable(
                f"programs run as nobody, who may not read {hidden[0]}; have the interpreter and its packages where "
                "everyone may read them (/usr, /opt), or run as a plain user"
            )
    return Level("Landlock, without namespaces", (), interpreter.environment(), "landlock")


def _is_open_to_all(path: Path) -> bool:
    needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    ways = (parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return path.stat().st_mode & needed == needed and all(ways)


def _bwrap() -> tuple[str, ...]:
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxUnavailable("bubblewrap is not installed; type: apt-get install bubblewrap (or dnf, pacman, apk)")
    # Not `--unshare-all`: root needs no user namespace here, and without one the zygote can become nobody *after* the
    # folders that only root may read are in place.
    words = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.getuid() == 0 else ["--unshare-user"]
    words += ["--die-with-parent", "--proc", "/proc"]
    # bubblewrap itself is started with an empty environment, as its first process keeps that for all to read.
    for name, value in interpreter.environment().items():
        words += ["--setenv", name, value]
    visible = {interpreter.inside(path): path for path in interpreter.visible()}
    parents = {str(parent) for place in (*visible, "/dev/x") for parent in Path(place).parents}
    for parent in sorted(parents - {"/"} - set(visible)):
        words += ["--dir", parent]  # left to itself, bubblewrap may close them to all but root
    for place, path in visible.items():
        words += ["--symlink", os.readlink(path), place] if os.path.islink(path) else ["--ro-bind", path, place]
    for path in inside.DEVICES:
        words += ["--dev-bind", path, path]
    for link, target in inside.LINKS.items():
        words += ["--symlink", target, link]
    return (*words, "--dir", inside.SCRATCH, "--remount-ro", "/", "--chdir", "/", "--")
