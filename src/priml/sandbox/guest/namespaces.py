"""Namespaces: of the zygote, once, and of each program. Runs inside.

The zygote is the first process of a pid namespace that it owns by a user namespace. So it can, without any right on
the machine, give each program a pid, mount, ipc and user namespace and a scratch that vanishes.
"""

import os

from . import kernel

NOBODY = 65534
SCRATCH_PARENT = "/run"
SCRATCH = "/run/program"
LINKS = {"/tmp": f"{SCRATCH}/tmp", "/dev/shm": f"{SCRATCH}/shm", "/dev/stdin": f"{SCRATCH}/stdin"}
"""Where programs look for what is in the scratch: one file system, so that one limit holds for all."""
DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]

_SAFE = kernel.MS_NOSUID | kernel.MS_NODEV


def become_nobody() -> None:
    """Leave root behind: process limits do not bind it, and in a user namespace of its own it would still own files."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        kernel.own_proc_files()


def enter() -> None:
    """Give this process namespaces of its own, and a pid namespace to its next child."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(
        kernel.CLONE_NEWUSER
        | kernel.CLONE_NEWNS
        | kernel.CLONE_NEWPID
        | kernel.CLONE_NEWIPC
        | kernel.CLONE_NEWNET
        | kernel.CLONE_NEWUTS
        | kernel.CLONE_NEWCGROUP
    )
    for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def hide_processes() -> None:
    """Cover /proc, which the zygote itself needs no more by name."""
    kernel.mount("tmpfs", "/proc", "tmpfs", _SAFE | kernel.MS_RDONLY, "size=4k,mode=555")


def next_child_is_first(own_pidfd: int) -> None:
    """Let the next child of this process be the first of a new pid namespace."""
    next_child_is_with_us(own_pidfd)  # else the new namespace would be nested in the last one
    kernel.unshare(kernel.CLONE_NEWPID)


def next_child_is_with_us(own_pidfd: int) -> None:
    """Let the next child of this process be in our own pid namespace again."""
    kernel.setns(own_pidfd, kernel.CLONE_NEWPID)


def own_scratch(stdin: bytes, size_mib: int) -> int:
    """In a program's process: make its mounts and scratch, drop all capabilities. Return `stdin` as an open file."""
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
    size = f"size={(size_mib << 20) + len(stdin)},nr_inodes={1024 * size_mib},mode=777"
    kernel.mount("tmpfs", SCRATCH, "tmpfs", _SAFE, size)
    os.mkdir(f"{SCRATCH}/tmp")
    os.mkdir(f"{SCRATCH}/shm")
    with open(f"{SCRATCH}/stdin", "xb") as file:
        file.write(stdin)
    os.chdir(f"{SCRATCH}/tmp")
    # A user namespace without a single user: its ids are all "nobody", and of the zygote's it has no right.
    kernel.unshare(kernel.CLONE_NEWUSER)
    kernel.drop_capabilities()
    return os.open(f"{SCRATCH}/stdin", os.O_RDONLY)
