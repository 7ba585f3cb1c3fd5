"""The few system calls that Python does not offer, by ctypes. Linux only; runs inside."""

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_MADV_COLLAPSE = 25
_HUGE_PAGE = 2 << 20
_CAPABILITY_VERSION_3 = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
MACHINE = os.uname().machine


def syscall(what: str, number: int, *args: int | bytes | None) -> int:
    """Make a raw system call; an `OSError` names `what`."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else ctypes.c_char_p(arg) for arg in args]
    return _checked(what, _libc.syscall(ctypes.c_long(number), *wide))


def gather_into_huge_pages(maps: str) -> None:
    """Make this process cheap to fork: a huge page is one entry to copy, not 512. `maps` is /proc/self/maps.

    Kernels before 6.1 cannot do this; only time is lost there.
    """
    for line in maps.splitlines():
        addresses, access, _, _, inode, *name = line.split()
        start, end = (int(address, 16) for address in addresses.split("-"))
        start, end = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and start < end:
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for fresh ones (the pid namespace: for the next child)."""
    _checked("unshare", _libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespaces of a process, given its pidfd."""
    _checked("setns", _libc.setns(fd, flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """See mount(2)."""
    text = [None if value is None else os.fsencode(value) for value in (source, target, kind, data)]
    _checked(f"mount on {target}", _libc.mount(*text[:3], ctypes.c_ulong(flags), text[3]))


def drop_capabilities() -> None:
    """Drop all capabilities, for good: no_new_privs keeps executed programs from regaining any."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    syscall("capset", _CAPSET[MACHINE], header, bytes(24))


def no_new_privileges() -> None:
    """Let no executed program gain rights (set-user-id bits, file capabilities)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Get SIGKILL when the thread that started this process ends. A change of user id undoes it: call it after."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def own_proc_files() -> None:
    """Let this process write its own files in /proc again, which a change of user id forbids."""
    _prctl(_PR_SET_DUMPABLE, 1)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter, a classic BPF program of 8-byte instructions."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    buffer = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer))


def _prctl(option: int, value: int, more: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    _checked(f"prctl {option}", _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), zero, zero))


def _checked(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
