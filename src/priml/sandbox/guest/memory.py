"""The memory of programs, each with all the processes it started. Runs inside, and beside child processes of ours."""

import os
from collections.abc import Iterator, Mapping

_PAGE = os.sysconf("SC_PAGESIZE")
_PARENT, _SESSION, _RESIDENT = 1, 3, 21  # in `stat`, behind the name


def beyond(proc_fd: int, limits: Mapping[int, int]) -> set[int]:
    """Return those programs whose processes together hold more memory than their limit.

    `limits` has bytes by the id of a program's first process, as in the open folder `proc_fd`, a /proc. The other
    processes are those of its session, and their children. A page that several share counts once.
    """
    processes = list(_processes(proc_fd))
    over = set[int]()
    for first, limit in limits.items():
        members = _members(first, processes)
        # The resident size is quick to read and counts shared pages for each: an upper bound.
        if sum(members.values()) > limit and sum(_own_bytes(proc_fd, pid) for pid in members) > limit:
            over.add(first)
    return over


def id_in(proc_fd: int, pidfd: int) -> int:
    """Return the id in that /proc of the process that `pidfd` refers to; negative if it has ended."""
    lines = _read(proc_fd, f"self/fdinfo/{pidfd}").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(b"Pid:"))


def resident(proc_fd: int) -> int:
    """Return the bytes of memory that this process holds."""
    return int(_read(proc_fd, "self/statm").split()[1]) * _PAGE


def _members(first: int, processes: list[tuple[int, int, int, int]]) -> dict[int, int]:
    """Resident bytes by process id."""
    members = {pid: resident for pid, _, session, resident in processes if first in (pid, session)}
    while more := {pid: resident for pid, parent, _, resident in processes if parent in members and pid not in members}:
        members |= more
    return members


def _processes(proc_fd: int) -> Iterator[tuple[int, int, int, int]]:
    """Id, parent, session and resident bytes of each process."""
    for name in os.listdir(proc_fd):
        if name.isdigit() and (text := _read(proc_fd, f"{name}/stat")):
            fields = text.rpartition(b")")[2].split()
            yield int(name), int(fields[_PARENT]), int(fields[_SESSION]), int(fields[_RESIDENT]) * _PAGE


def _own_bytes(proc_fd: int, pid: int) -> int:
    """The process's part of all pages: one that three share counts a third."""
    for line in _read(proc_fd, f"{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) << 10
    return 0


def _read(proc_fd: int, path: str) -> bytes:
    """Return nothing if the process has ended."""
    try:
        with open(os.open(path, os.O_RDONLY, dir_fd=proc_fd), "rb") as file:
            return file.read()
    except OSError:
        return b""
