"""The resource limits of one process, as the kernel enforces them. Runs inside."""

import os
import resource

_MIB = 1 << 20
_UNKNOWN_BASE = 256 * _MIB
_SPARE_TASKS = 512
_STACK_BYTES = 512 * _MIB
"""Of the main thread, for recursion through C; judges of contests have no limit. It counts as memory as it is used."""


def apply(limits: dict[str, int], *, base_bytes: int, other_tasks: int | None) -> None:
    """Take on the limits of a request; children inherit them, and nothing in a program can raise them again.

    `base_bytes` is the address space that is in use already, which is not the program's. `other_tasks` is how many
    processes and threads of the same user id the kernel counts beside the program's; None: do not bound their number.
    """
    bounds = {
        resource.RLIMIT_AS: base_bytes + limits["memory_mib"] * _MIB,
        resource.RLIMIT_CPU: limits["cpu_s"],  # soft = hard: SIGKILL, which cannot be caught
        resource.RLIMIT_FSIZE: limits["file_mib"] * _MIB,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if other_tasks is not None:
        bounds[resource.RLIMIT_NPROC] = other_tasks + limits["processes"]
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (value, value))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    soft = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def address_space(proc_fd: int | None = None) -> int:
    """Return the bytes that this process has mapped. `proc_fd` is an open /proc where that cannot be named."""
    try:
        path = "/proc/self/statm" if proc_fd is None else "self/statm"
        with open(os.open(path, os.O_RDONLY, dir_fd=proc_fd)) as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        return _UNKNOWN_BASE


def tasks_of_user() -> int:
    """Return the number of processes and threads of this user id in /proc, and some for those to come."""
    uid, count = os.getuid(), 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    count += len(os.listdir(f"/proc/{entry.name}/task"))
            except OSError:  # it has ended meanwhile
                continue
    return count + _SPARE_TASKS
