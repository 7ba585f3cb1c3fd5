"""Landlock: limit what this process may do with files, ports and signals. Runs inside.

See landlock(7). Each version of the kernel's interface (ABI) can forbid more. What an older kernel does not know is
left to the other layers.
"""

import os
import struct

from . import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_QUERY = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_SINCE, _ALL_NET = 4, 0b11
_SCOPE_SINCE, _ALL_SCOPES = 6, 0b11
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14) | (1 << 15)  # truncate, ioctl: what makes sense on a file


def abi() -> int:
    """Return the kernel's version of Landlock. Raises OSError when it has none, or has it switched off."""
    return kernel.syscall("landlock", _CREATE_RULESET, None, 0, _ABI_QUERY)


def ruleset(readable: list[str], writable: list[str], devices: list[str]) -> int:
    """Return a file descriptor for `restrict`: `readable` is to read and execute, `writable` for everything.

    `devices` may be read and written, not replaced. Everything else is forbidden: any other file, TCP ports, signals
    to processes outside, abstract sockets from outside.
    """
    version = abi()
    files = _ALL_FILES[min(version, max(_ALL_FILES))]
    net = _ALL_NET if version >= _NET_SINCE else 0
    scopes = _ALL_SCOPES if version >= _SCOPE_SINCE else 0
    attributes = struct.pack("QQQ", files, net, scopes)[: 24 if scopes else 16 if net else 8]
    fd = kernel.syscall("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    for paths, access in ((readable, _READ), (writable, files), (devices, _READ_FILE | _WRITE_FILE)):
        for path in paths:
            _allow(fd, path, access & files)
    return fd


def restrict(ruleset_fd: int) -> None:
    """Take the rules on, for good, for this process and all its children. Needs no_new_privs."""
    kernel.syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset_fd, 0)


def _allow(ruleset_fd: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            access &= _ON_FILES
        rule = struct.pack("=Qi", access, fd)
        kernel.syscall("landlock_add_rule", _ADD_RULE, ruleset_fd, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
