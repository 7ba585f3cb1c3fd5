"""Programs that try to do harm, by category. What matters is what is seen from outside, not what they print."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from priml.sandbox import Limits, Sandbox, SandboxResult
from priml.sandbox.choose import LEVELS
from priml.sandbox.gvisor import GvisorSandbox
from priml.sandbox.selftest import Outside
from sampling import SEED, tenth

LIMITS = Limits(wall_s=20.0, cpu_s=5, memory_mib=128, output_bytes=1 << 16, file_mib=4, processes=16, open_files=64)
HURRIED = replace(LIMITS, wall_s=1.0)  # most hostile programs do not end by themselves

SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

HOSTILE: dict[str, dict[str, str]] = {
    "files": {
        "write outside": "open('@FOLDER@/escaped', 'w').write('x')",
        "read a secret": "print(open('@FOLDER@/secret').read())",
        "delete a secret": "import os; os.unlink('@FOLDER@/secret')",
        "overwrite a secret": "open('@FOLDER@/secret', 'w').write('x')",
        "truncate a secret": "import os; os.truncate('@FOLDER@/secret', 0)",
        "rename a secret": "import os; os.rename('@FOLDER@/secret', '@FOLDER@/moved')",
        "link to a secret": "import os; os.link('@FOLDER@/secret', 'here'); print(open('here').read())",
        "symlink to a secret": "import os; os.symlink('@FOLDER@/secret', 'here'); print(open('here').read())",
        "change permissions": "import os; os.chmod('@FOLDER@', 0o700)",
        "change times": "import os; os.utime('@FOLDER@/secret', (1, 1))",
        "remove the folder": "import shutil; shutil.rmtree('@FOLDER@')",
        "climb by dots": "print(open('../' * 30 + '@FOLDER@/secret'.lstrip('/')).read())",
        "list the root": "import os\nfor d, _, f in os.walk('/'):\n"
        "  if 'secret' in f: print(open(d + '/secret').read())",
        "password file": "print('STOLEN', open('/etc/passwd').read())",
        "spoil the interpreter": "import os, json\n"
        "open(os.path.dirname(json.__file__) + '/escaped.py', 'w').write('x')",
        "make a device": "import os, stat; os.mknod('disk', stat.S_IFBLK | 0o666, os.makedev(254, 0))\n"
        "print('STOLEN', open('disk', 'rb').read(1))",
        "set-user-id file": "import os, shutil, sys\nshutil.copy(sys.executable, 'sh'); os.chmod('sh', 0o6755)\n"
        "print(os.popen('./sh -c \"print(open(\\'@FOLDER@/secret\\').read())\"').read())",
        "raw disk": "print('STOLEN', open('/dev/vda', 'rb').read(1), open('/dev/sda', 'rb').read(1))",
        "kernel memory": "print('STOLEN', open('/dev/mem', 'rb').read(1))",
    },
    "secrets": {
        "environment": "import os; print(dict(os.environ))",
        "environment of others": "import glob\nfor p in glob.glob('/proc/*/environ'):\n"
        "  try: print(open(p).read())\n  except OSError: pass",
        "own environment at start": "print(open('/proc/self/environ').read())",
        "command lines": "import glob\nfor p in glob.glob('/proc/*/cmdline'):\n"
        "  try: print(open(p).read())\n  except OSError: pass",
        "memory of the first process": "print(open('/proc/1/mem', 'rb').read(1))",
        "root of the first process": "print(open('/proc/1/root@FOLDER@/secret').read())",
        "folder of the first process": "print(open('/proc/1/cwd/..@FOLDER@/secret').read())",
        "mounts": "print('STOLEN', open('/proc/self/mounts').read())",
        "descriptors left open": "import os\nfor fd in range(3, 1024):\n"
        "  try: print('STOLEN', fd, os.fstat(fd))\n  except OSError: pass",
        "kernel log": SYSCALL + "b = ctypes.create_string_buffer(99); print('STOLEN', call(103, 3, b, 99))",
        "keyrings": SYSCALL + "print('STOLEN', call(250, 0, -3, 1))",
    },
    "processes": {
        "kill a process": "import os, signal; os.kill(@PID@, signal.SIGKILL)",
        "kill all": "import os, signal; os.kill(-1, signal.SIGKILL)",
        "kill the first process": "import os, signal; os.kill(1, signal.SIGKILL)",
        "kill the parent": "import os, signal\nif os.getppid() > 0: os.kill(os.getppid(), signal.SIGKILL)",
        "kill the group": "import os, signal; os.killpg(0, signal.SIGKILL)",
        "stop the parent": "import os, signal\nif os.getppid() > 0: os.kill(os.getppid(), signal.SIGSTOP)",
        "signal by thread": SYSCALL + "call(200, @PID@, 9)",
        "signal by queue": SYSCALL + "call(129, @PID@, 9, ctypes.create_string_buffer(128))",
        "signal by pidfd": "import os, signal; signal.pidfd_send_signal(os.pidfd_open(@PID@), 9)",
        "trace a process": SYSCALL + "call(101, 16, @PID@, 0, 0)",
        "trace the parent": SYSCALL + "call(101, 16, os.getppid() or 1, 0, 0)",
        "read memory": SYSCALL + "call(310, @PID@, 0, 0, 0, 0, 0)",
        "limits of another": "import resource; resource.prlimit(@PID@, resource.RLIMIT_CPU, (0, 0))",
        "steal a descriptor": SYSCALL + "call(438, call(434, @PID@, 0), 0, 0)",
        "bother by priority": "import os; os.setpriority(os.PRIO_PROCESS, @PID@, 19)",
    },
    "leaving something behind": {
        "daemon": "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: @NAME@; time.sleep(60)\n"
        "  os._exit(0)",
        "daemon that ignores signals": "import os, signal, time\nif os.fork() == 0:\n"
        "  for n in range(1, 32):\n    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\n  @NAME@; time.sleep(60)",
        "daemon that closed its files": "import os, time\nif os.fork() == 0:\n"
        "  for fd in range(9):\n    try: os.close(fd)\n    except OSError: pass\n  os.setsid(); @NAME@; time.sleep(60)",
        "thread": "import threading, time\n@NAME@\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "pool": "import concurrent.futures as c, time\n@NAME@\nc.ProcessPoolExecutor(2).submit(time.sleep, 60)",
        "file in scratch": "open('/tmp/@MARK@', 'w').write('x'); open('/dev/shm/@MARK@', 'w').write('x')",
        "shared memory": "from multiprocessing import shared_memory as s; s.SharedMemory('@MARK@', True, 4096)",
        "System V memory": SYSCALL + "print('KEPT', call(29, 0x1234567, 4096, 0o1666))",
        "message queue": SYSCALL + "print('KEPT', call(240, b'@MARK@', 0o102, 0o666, None))",
        "attribute of scratch": "import os; os.setxattr('/tmp', 'user.mark', b'@MARK@')",
    },
    "network": {
        "TCP": "import socket; socket.create_connection(('127.0.0.1', @TCP@), 2).send(b'x')",
        "UDP": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @UDP@))",
        "web": "import urllib.request; print('STOLEN', urllib.request.urlopen('http://127.0.0.1:@TCP@', timeout=2))",
        "listen": "import socket; socket.create_server(('127.0.0.1', 0)); print('LISTENS')",
        "raw": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('STOLEN')",
        "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); print('STOLEN')",
        "abstract": "import socket\ns = socket.socket(socket.AF_UNIX); s.bind('\\0@MARK@'); print('LISTENS')",
        "socket by 32-bit call": SYSCALL + "call(0x40000000 + 41, 2, 1, 0); print('STOLEN')",
        "queue of the kernel": SYSCALL + "print('STOLEN', call(425, 8, ctypes.create_string_buffer(256)))",
    },
    "kernel": {
        "new user namespace": SYSCALL + "call(272, 0x10000000); print('STOLEN')",
        "new namespace by clone": SYSCALL + "call(56, 0x10000011, 0, 0, 0, 0); print('STOLEN')",
        "new namespace by clone3": SYSCALL + "call(435, (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)",
        "mount": SYSCALL + "call(165, b'none', b'/tmp', b'tmpfs', 0, None); print('STOLEN')",
        "mount proc": SYSCALL + "call(165, b'proc', b'/proc', b'proc', 0, None); print('STOLEN')",
        "unmount": SYSCALL + "call(166, b'/proc', 2); print('STOLEN')",
        "change root": "import os; os.chroot('/tmp'); print('STOLEN')",
        "become root": "import os; os.setuid(0); print('STOLEN')",
        "eBPF": SYSCALL + "call(321, 0, ctypes.create_string_buffer(128), 128); print('STOLEN')",
        "performance events": SYSCALL + "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0); print('STOLEN')",
        "fault handling": SYSCALL + "call(323, 0); print('STOLEN')",
        "file handles": SYSCALL + "call(304, -100, ctypes.create_string_buffer(64), 0); print('STOLEN')",
        "module": SYSCALL + "call(175, b'x', 1, b''); print('STOLEN')",
        "reboot": SYSCALL + "call(169, 0xfee1dead, 672274793, 0, 0); print('STOLEN')",
        "clock": "import time; time.clock_settime(time.CLOCK_REALTIME, time.time()); print('STOLEN')",
        "host name": "import socket; socket.sethostname('escaped'); print('STOLEN')",
        "type into the terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); print('STOLEN')",
        "another filter": SYSCALL + "call(317, 0, 0, 0); open('@FOLDER@/escaped', 'w')",
    },
    "resources": {
        "fork bomb": "import os\nwhile True: os.fork()",
        "fork bomb that goes on": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
        "memory by mapping": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24))",
        "memory without address space": "import os\nf = os.memfd_create('x')\nwhile True: os.write(f, bytes(1 << 20))",
        "locked memory": SYSCALL + "x = bytearray(1 << 26); call(151, 3); print('STOLEN')",
        "memory in pipes": "import os\nx = []\nwhile True: x.append(os.pipe()); os.write(x[-1][1], bytes(60000))",
        "disk": "n = 0\nwhile True: n += 1; open('f%d' % n, 'wb').write(bytes(1 << 20))",
        "many files": "n = 0\nwhile True: n += 1; open('f%d' % n, 'wb').close()",
        "one long file": "f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))",
        "sparse file": "f = open('f', 'wb'); f.truncate(1 << 40); print('STOLEN')",
        "descriptors": "x = []\nwhile True: x.append(open('/dev/null'))",
        "core file": "import resource, os\nresource.setrlimit(resource.RLIMIT_CORE, (1 << 30,) * 2); os.abort()",
        "higher limits": "import resource as r\nfor n in range(16):\n  r.setrlimit(n, (r.RLIM_INFINITY,) * 2)",
        "deep recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
        "huge number": "print(9 ** 9 ** 9)",
        "huge source": "exec('x = 1\\n' * 10**7)",
    },
    "time": {
        "loop": "while True: pass",
        "sleep": "import time; time.sleep(1000)",
        "wait for input that never comes": "import os\nr, w = os.pipe()\nos.read(r, 1)",
        "ignore signals": "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "loop in the end": "import atexit\ndef f():\n  while True: pass\natexit.register(f)",
        "loop in an exception": "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E",
        "thread that is waited for": "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()",
        "regular expression": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    },
    "output": {
        "endless": "while True: print('x' * 1000)",
        "endless errors": "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
        "endless from many": "import os\nfor _ in range(3):\n  try: os.fork()\n  except OSError: break\n"
        "while True: os.write(1, b'x' * 65536)",
        "one huge line": "print('x' * (1 << 25))",
        "not text": "import os; os.write(1, bytes(range(256)) * 16)",
        "a huge exception": "raise Exception('x' * (1 << 25))",
    },
    "endings": {
        "exit at once": "import os; os._exit(0)",
        "segmentation fault": "import ctypes; ctypes.string_at(0)",
        "abort": "import os; os.abort()",
        "illegal instruction": "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7); m.write(b'\\x0f\\x0b')\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
        "close everything": "import os; os.closerange(0, 1024)",
        "broken streams": "import sys; sys.stdout = sys.stderr = sys.stdin = None; print(1)",
        "broken builtins": "import builtins, os, sys\nbuiltins.open = builtins.print = builtins.compile = None\n"
        "os._exit = os.write = None; sys.modules.clear()",
        "broken hook": "import sys\ndef f(*a): raise SystemExit('x')\nsys.excepthook = f\n1 / 0",
        "exit by exception": "raise BaseException('x')",
        "replace itself": "import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
        "not a program": "\x00 nonsense (",
        "surrogates": "print('\ud800')",
    },
}


@dataclass(frozen=True)
class Scene:
    """What the outside looks like; compared before and after."""

    folder: dict[str, tuple[int, str]]
    mode: int
    times: int


def scene(outside: Outside) -> Scene:
    files = {path.name: (path.stat().st_mode, path.read_text()) for path in outside.folder.iterdir()}
    return Scene(files, outside.folder.stat().st_mode, (outside.folder / "secret").stat().st_mtime_ns)


CASES = [(level, category, name) for level in LEVELS for category, codes in HOSTILE.items() for name in codes]
by_level = pytest.mark.parametrize(("level", "category", "name"), CASES, indirect=["level"])
by_level_sampled = pytest.mark.parametrize(
    ("level", "category", "name"),
    [pytest.param(*case, id=f"{'-'.join(case)} of sample {SEED}") for case in tenth(CASES)],
    indirect=["level"],
)


def test_there_are_enough_of_them():
    assert sum(map(len, HOSTILE.values())) >= 100
    assert len(HOSTILE) >= 10


@pytest.mark.exhaustive
@by_level
def test_nothing_happens_outside_and_the_next_program_is_served(
    level: Sandbox, outside: Outside, category: str, name: str
):
    check_hostile(level, outside, category, name)


@by_level_sampled
def test_nothing_happens_outside_for_a_sample(level: Sandbox, outside: Outside, category: str, name: str):
    check_hostile(level, outside, category, name)


def check_hostile(level: Sandbox, outside: Outside, category: str, name: str) -> None:
    mark = outside.secret[:15]
    code = fill_in(HOSTILE[category][name], outside, mark)
    before = scene(outside)

    result = level.run(code, limits=limits_for(level, category))

    assert scene(outside) == before
    assert outside.bystander.poll() is None, "another process was killed"
    assert not is_reached(outside)
    assert not processes_called(mark)
    check_output(result, outside)
    if category == "time":
        assert result.status == "time limit"
    if category == "output":
        assert max(len(result.stdout), len(result.stderr)) <= LIMITS.output_bytes
    check_nothing_is_left(level, mark)


def limits_for(level: Sandbox, category: str) -> Limits:
    if isinstance(level, GvisorSandbox):  # a container takes its time to start
        return replace(LIMITS, wall_s=5.0)
    return replace(HURRIED, wall_s=0.3) if category == "time" else HURRIED


def fill_in(code: str, outside: Outside, mark: str) -> str:
    name = f"__import__('ctypes').CDLL(None).prctl(15, b'{mark}', 0, 0, 0)"
    values = {
        "FOLDER": str(outside.folder),
        "PID": str(outside.bystander.pid),
        "TCP": str(outside.tcp.getsockname()[1]),
        "UDP": str(outside.udp.getsockname()[1]),
        "MARK": mark,
        "NAME": name,
    }
    for key, value in values.items():
        code = code.replace(f"@{key}@", value)
    return code


def is_reached(outside: Outside) -> bool:
    for listener in (outside.tcp, outside.udp):
        listener.setblocking(False)
        try:
            listener.accept() if listener is outside.tcp else listener.recv(1)
            return True
        except BlockingIOError:
            continue
    return False


def processes_called(name: str) -> list[str]:
    found = []
    for comm in Path("/proc").glob("[0-9]*/task/*/comm"):
        try:
            if comm.read_text().strip() == name:
                found.append(str(comm))
        except OSError:  # ended meanwhile
            continue
    return found


def check_output(result: SandboxResult, outside: Outside) -> None:
    said = result.stdout + result.stderr
    # The mark is the beginning of the secret and is in the program itself, so that tracebacks may show it.
    assert outside.secret not in said
    for word in ("STOLEN", "LISTENS", "KEPT"):
        assert not any(line.startswith(word) for line in result.stdout.splitlines())
    ours = [name for name, value in os.environ.items() if len(value) > 15 and value in result.stdout]
    assert not ours, f"our environment was seen: {ours}"


def check_nothing_is_left(level: Sandbox, mark: str) -> None:
    look = f"""
import os
mark, found = {mark!r}, []
for folder in ("/tmp", "/dev/shm", "."):
    try: found += [name for name in os.listdir(folder) if mark in name]
    except OSError: pass
try: found += [name for name in os.listxattr("/tmp") if "mark" in name]
except OSError: pass
print(found, input())
"""
    result = level.run(look, stdin="served", limits=LIMITS)
    assert result.stdout == "[] served\n", result


def test_a_program_may_not_see_how_many_others_there_are(level: Sandbox):
    listing = level.run("import os; print([name for name in os.listdir('/proc') if name.isdigit()])", limits=LIMITS)
    assert listing.stdout in ("[]\n", ""), listing


def test_the_zygotes_files_and_sockets_are_closed_for_a_session_but_for_its_channel(level: Sandbox):
    code = """
import os
def is_open(fd):
    try: os.fstat(fd); return True
    except OSError: return False
receive(); reply(repr([fd for fd in range(64) if is_open(fd)]).encode())
"""
    channel = [3, 4] if isinstance(level, GvisorSandbox) else [3]  # a pipe each way, or one socket
    with level.open(code, limits=LIMITS) as session:
        assert session.ask(b"") == repr([0, 1, 2, *channel]).encode()


def test_hostile_programs_do_harm_without_a_sandbox(outside: Outside):
    """What the suite looks for is really there to be found."""
    code = fill_in(HOSTILE["files"]["write outside"] + "\n" + HOSTILE["processes"]["kill a process"], outside, "x")
    subprocess.run(["python3", "-c", code], check=True)
    assert "escaped" in scene(outside).folder
    assert outside.bystander.wait(10) == -9
