"""The system calls a program may make: a seccomp filter as a classic BPF program. Runs inside.

A deny list over the calls that existed before Linux 5.1, and everything newer answered "no such call": the C library
falls back to the older ones, and what a later kernel may bring (io_uring, new ways to mount) is out of reach unseen.
Forbidden calls fail with EPERM rather than kill, so that harmless programs that try and cope go on.
"""

from __future__ import annotations

import errno
import struct

from . import kernel
from .syscalls import FORBIDDEN, FORBIDDEN_AMONG_PROCESSES, FORBIDDEN_ON_SHARED_FILES, MACHINES, numbers

_NEWER_THAN = 424  # system calls from 5.1 on are numbered alike on all machines, from here
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


# Calls judged by their arguments: numbers on x86_64 and aarch64.
_CLONE, _SOCKETPAIR, _IOCTL, _PRLIMIT = (56, 220), (53, 199), (16, 29), (302, 261)
_KILL, _TGKILL = (62, 129), (234, 131)

_AF_UNIX = 1
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal of whoever started us
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL_PROCESS, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def namespaced() -> bytes:
    """The filter for a program that has a pid and a mount namespace of its own: it may have children and files."""
    clone = [_load_argument(0), _jump(_ANY_BIT, _CLONE_NAMESPACES, 0, 1), _error(errno.EPERM)]
    return _program(FORBIDDEN, {_CLONE: clone})


def shared(pid: int) -> bytes:
    """The filter for process `pid` in the midst of others: threads but no children, signals to itself alone."""
    itself = _unless_first_argument(pid)
    clone = [_load_argument(0), _jump(_ANY_BIT, _CLONE_THREAD, 1, 0), _error(errno.EPERM)]
    forbidden = ";".join((FORBIDDEN, FORBIDDEN_ON_SHARED_FILES, FORBIDDEN_AMONG_PROCESSES))
    return _program(forbidden, {_CLONE: clone, _KILL: itself, _TGKILL: itself})


def _program(forbidden: str, judged: dict[tuple[int, int], list[bytes]]) -> bytes:
    """Forbidden calls, and calls judged by their arguments: `judged` says when to fail, else they pass."""
    terminal = [_load_argument(1)]
    for request in _TERMINAL_INPUT:
        terminal += [_jump(_EQUAL, request, 0, 1), _error(errno.EPERM)]
    judged = {
        **judged,
        _SOCKETPAIR: _unless_first_argument(_AF_UNIX),
        _PRLIMIT: _unless_first_argument(0),  # 0: the caller itself
        _IOCTL: terminal,
    }
    code = [
        _instruction(_LOAD, _MACHINE),
        _jump(_EQUAL, _ARCHITECTURE[kernel.MACHINE], 1, 0),  # another calling convention has other numbers
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
        _jump(_AT_LEAST, _NEWER_THAN, 0, 1),
        _error(errno.ENOSYS),
    ]
    for number in numbers(forbidden, kernel.MACHINE):
        code += [_jump(_EQUAL, number, 0, 1), _error(errno.EPERM)]
    for pair, checks in judged.items():
        number = pair[MACHINES.index(kernel.MACHINE)]
        code += [_jump(_EQUAL, number, 0, len(checks) + 1), *checks, _instruction(_RETURN, _ALLOW)]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _unless_first_argument(value: int) -> list[bytes]:
    return [_load_argument(0), _jump(_EQUAL, value, 1, 0), _error(errno.EPERM)]


def _load_argument(index: int) -> bytes:
    return _instruction(_LOAD, _FIRST_ARGUMENT + 8 * index)  # the low half: all these arguments are 32 bits wide


def _error(code: int) -> bytes:
    return _instruction(_RETURN, _ERROR | code)


def _instruction(operation: int, value: int) -> bytes:
    return _jump(operation, value, 0, 0)


def _jump(operation: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)
