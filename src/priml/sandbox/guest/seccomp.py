"""The system calls that a program may make: a seccomp filter as a classic BPF program. Runs inside.

It denies a list of the calls that existed before Linux 5.1. Every newer call is answered with "no such call": the C
library falls back to the older ones, and what later kernels bring (io_uring, new ways to mount) is out of reach.
Forbidden calls fail with EPERM and do not kill, so that harmless programs that try them go on.

A table of calls is text: a name, its number on x86_64 and on aarch64 ("-" where that has no such call), a semicolon.
"""

import errno
import struct
from collections.abc import Iterator

from . import kernel

MACHINES = ("x86_64", "aarch64")
FORBIDDEN = """
    # the network, and sockets that could carry file descriptors (socketpair is seen to below)
    socket 41 198; connect 42 203; bind 49 200; listen 50 201; accept 43 202; accept4 288 242; sendmsg 46 211;
    sendmmsg 307 269; recvmsg 47 212; recvmmsg 299 243;
    # other processes
    ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; kcmp 312 272;
    # mounts and namespaces
    mount 165 40; umount2 166 39; pivot_root 155 41; chroot 161 51; unshare 272 97; setns 308 268; swapon 167 224;
    swapoff 168 225; quotactl 179 60;
    # memory that no limit counts
    memfd_create 319 279; mlock 149 228; mlockall 151 230; mlock2 325 284; shmget 29 194; shmat 30 196;
    shmctl 31 195; shmdt 67 197; semget 64 190; semop 65 193; semctl 66 191; semtimedop 220 192; msgget 68 186;
    msgsnd 69 189; msgrcv 70 188; msgctl 71 187; mq_open 240 180; mq_unlink 241 181; mbind 237 235;
    set_mempolicy 238 237; migrate_pages 256 238; move_pages 279 239;
    # parts of the kernel that no ordinary program uses
    bpf 321 280; perf_event_open 298 241; userfaultfd 323 282; keyctl 250 219; add_key 248 217;
    request_key 249 218; io_setup 206 0; io_submit 209 2; init_module 175 105; finit_module 313 273;
    delete_module 176 106; kexec_load 246 104; kexec_file_load 320 294; reboot 169 142; syslog 103 116;
    acct 163 89; open_by_handle_at 304 265; name_to_handle_at 303 264; fanotify_init 300 262;
    fanotify_mark 301 263; lookup_dcookie 212 18; personality 135 92; vhangup 153 58; iopl 172 -; ioperm 173 -;
    modify_ldt 154 -; uselib 134 -;
    # the machine's clock and name
    settimeofday 164 170; clock_settime 227 112; clock_adjtime 305 266; adjtimex 159 171; sethostname 170 161;
    setdomainname 171 162
"""
"""To all programs."""

FORBIDDEN_ON_SHARED_FILES = """
    chmod 90 -; fchmod 91 52; fchmodat 268 53; chown 92 -; fchown 93 55; lchown 94 -; fchownat 260 54;
    utime 132 -; utimes 235 -; utimensat 280 88; futimesat 261 -; setxattr 188 5; lsetxattr 189 6;
    fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16; truncate 76 45
"""
"""Where there is no mount namespace: what Landlock leaves open on files of the same user."""

FORBIDDEN_AMONG_PROCESSES = """
    fork 57 -; vfork 58 -; tkill 200 130; rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240; setpriority 141 140;
    sched_setaffinity 203 122; sched_setscheduler 144 119; sched_setparam 142 118; sched_setattr 314 274;
    ioprio_set 251 30
"""
"""Where there is no pid namespace: what makes processes that could be left behind, or reaches others."""

_NEWER_THAN = 424  # system calls from 5.1 on are numbered alike on all machines, from here
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Calls that depend on their arguments: numbers on x86_64 and aarch64.
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
    """Return the filter for a program with its own pid and mount namespaces: it may have children and files."""
    clone = [_load_argument(0), _jump(_ANY_BIT, _CLONE_NAMESPACES, 0, 1), _error(errno.EPERM)]
    return _program(FORBIDDEN, {_CLONE: clone})


def shared(pid: int) -> bytes:
    """Return the filter for process `pid` among others: threads but no children, signals to itself alone."""
    itself = _unless_first_argument(pid)
    clone = [_load_argument(0), _jump(_ANY_BIT, _CLONE_THREAD, 1, 0), _error(errno.EPERM)]
    forbidden = ";".join((FORBIDDEN, FORBIDDEN_ON_SHARED_FILES, FORBIDDEN_AMONG_PROCESSES))
    return _program(forbidden, {_CLONE: clone, _KILL: itself, _TGKILL: itself})


def _program(forbidden: str, checks: dict[tuple[int, int], list[bytes]]) -> bytes:
    """Return the filter: `forbidden` calls fail; `checks` has instructions that fail some uses of other calls."""
    terminal = [_load_argument(1)]
    for request in _TERMINAL_INPUT:
        terminal += [_jump(_EQUAL, request, 0, 1), _error(errno.EPERM)]
    checks = {
        **checks,
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
    for pair, check in checks.items():
        number = pair[MACHINES.index(kernel.MACHINE)]
        code += [_jump(_EQUAL, number, 0, len(check) + 1), *check, _instruction(_RETURN, _ALLOW)]
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


def numbers(table: str, machine: str) -> Iterator[int]:
    """Yield the numbers of a table's calls on one kind of machine."""
    text = "".join(line for line in table.splitlines() if not line.lstrip().startswith("#"))
    for entry in text.split(";"):
        number = entry.split()[1 + MACHINES.index(machine)]
        if number != "-":
            yield int(number)
