"""Attack a sandbox, for real but harmlessly, and look from outside whether it worked.

A version check tells what should be in force; this tells what is. No attack would hurt if there were no sandbox at all:
it writes to a folder made for it, talks to sockets opened for it, signals a process started for it, or forks a bounded
number of short-lived children.
"""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from priml.sandbox.base import Limits, Sandbox, SandboxResult

_LIMITS = Limits(wall_s=20.0, cpu_s=10, memory_mib=128, output_bytes=1 << 16, file_mib=4, processes=16, open_files=64)
_FORKS = 100


def probe(sandbox: Sandbox) -> Iterator[tuple[str, str | None]]:
    """Yield the name of each attack with what was seen if it succeeded, None if it did not.

    Raises:
        SandboxLost: the sandbox broke under it.
    """
    with ExitStack() as stack:
        outside = Outside(stack)
        for name, attack in ATTACKS.items():
            yield name, attack(sandbox, outside)


class Outside:
    """What a program must not reach: a folder, sockets, a process, each with a secret in it."""

    def __init__(self, stack: ExitStack) -> None:
        self.secret = secrets.token_hex(12)
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-probe-")))
        self.folder.chmod(0o777)  # permissions shall not be what protects it
        (self.folder / "secret").write_text(self.secret)
        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.bind(("127.0.0.1", 0))
        # Ends with us, even if we are killed, and then takes the folder away.
        waiting = "import sys; sys.stdin.read(); import shutil; shutil.rmtree(sys.argv[2])"
        self.bystander = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", waiting, self.secret, str(self.folder)],
            env={"SECRET": self.secret},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        stack.callback(self.bystander.wait)
        stack.callback(self.bystander.kill)


def _harmless(sandbox: Sandbox, outside: Outside) -> str | None:
    code = (
        "import threading, tempfile\n"
        "word = []\nthread = threading.Thread(target=lambda: word.append(input()))\nthread.start(); thread.join()\n"
        "print(word[0].upper())"
    )
    result = sandbox.run(code, stdin="hello\n", limits=_LIMITS)
    if result.stdout == "HELLO\n" and result.exit_code == 0:
        return None
    return f"a harmless program failed: {_brief(result)}"


def _files(sandbox: Sandbox, outside: Outside) -> str | None:
    code = f"""
import os
folder = {str(outside.folder)!r}
for root in ("", "/proc/1/root", "/proc/self/root", "/.old", "/../.."):
    try: print(open(root + folder + "/secret").read())
    except OSError as error: print(error)
    try: open(root + folder + "/escaped", "w").write("x")
    except OSError as error: print(error)
for path in ("/etc/shadow", "/etc/passwd", "/root", "/home"):
    try: print(path, "SEEN", len(open(path).read()) if os.path.isfile(path) else os.listdir(path)[0])
    except (OSError, IndexError): pass
try: os.chmod(folder, 0o700); print("CHMOD")
except OSError: pass
"""
    result = sandbox.run(code, limits=_LIMITS)
    if (outside.folder / "escaped").exists():
        return "it wrote a file outside"
    if outside.folder.stat().st_mode & 0o777 != 0o777:
        return "it changed permissions outside"
    if outside.secret in result.stdout:
        return "it read a file outside"
    # The interpreter may be below /root or /home, of which only the way to it is then shown.
    system = ("/etc/shadow SEEN", "/etc/passwd SEEN")
    return "it read files of the system" if any(line in result.stdout for line in system) else None


def _environment(sandbox: Sandbox, outside: Outside) -> str | None:
    code = """
import glob, os
print(dict(os.environ), flush=True)
for path in glob.glob("/proc/[0-9]*/environ"):
    try: os.write(1, open(path, "rb").read())
    except OSError: pass
"""
    result = sandbox.run(code, limits=_LIMITS)
    if outside.secret in result.stdout:
        return "it read the environment of another process"
    own = [name for name, value in os.environ.items() if len(value) > 12 and value in result.stdout]
    return f"it sees our environment: {', '.join(own)}" if own else None


def _processes(sandbox: Sandbox, outside: Outside) -> str | None:
    # Bytes, and the process table last: other programs' command lines need not be text, nor fit into the output.
    code = f"""
import glob, os, signal
try: os.kill({outside.bystander.pid}, signal.SIGTERM); print("SENT")
except OSError as error: print(error)
if os.getppid() > 0:
    try: os.kill(os.getppid(), 0); print("REACHED")
    except OSError as error: print(error)
print(flush=True)
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try: os.write(1, open(path, "rb").read())
    except OSError: pass
"""
    result = sandbox.run(code, limits=_LIMITS)
    with suppress(subprocess.TimeoutExpired):
        # It may have signalled a process of its own with that number, so this one need not end.
        outside.bystander.wait(1.0 if "SENT" in result.stdout else 0.01)
        return "it killed another process"
    if outside.secret in result.stdout:
        return "it sees the process table"
    return "it may signal the process that started it" if "REACHED" in result.stdout else None


def _network(sandbox: Sandbox, outside: Outside) -> str | None:
    tcp, udp = outside.tcp.getsockname(), outside.udp.getsockname()
    code = f"""
import socket
try: socket.create_connection({tcp!r}, 1).send(b"x")
except OSError as error: print(error)
try: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", {udp!r})
except OSError as error: print(error)
"""
    sandbox.run(code, limits=_LIMITS)
    for kind, listener in (("TCP", outside.tcp), ("UDP", outside.udp)):
        listener.settimeout(0.05)
        with suppress(TimeoutError):
            listener.accept() if kind == "TCP" else listener.recv(1)
            return f"{kind} reached this machine"
    return None


def _fork_bomb(sandbox: Sandbox, outside: Outside) -> str | None:
    code = f"""
import os
born = 0
ours, theirs = os.pipe()
for _ in range({_FORKS}):
    try: pid = os.fork()
    except OSError: break
    if pid == 0: os.close(theirs); os.read(ours, 1); os._exit(0)  # all live until their parent ends
    born += 1
print(born)
"""
    born = int(sandbox.run(code, limits=_LIMITS).stdout or 0)
    if born < _LIMITS.processes:
        return None
    return f"it had {born} children where {_LIMITS.processes} processes are allowed"


def _memory_bomb(sandbox: Sandbox, outside: Outside) -> str | None:
    result = sandbox.run(f"block = bytearray({2 * _LIMITS.memory_mib} << 20)\nprint('GOT')", limits=_LIMITS)
    return None if result.status == "memory limit" else f"it allocated beyond the limit: {_brief(result)}"


def _memory_of_many(sandbox: Sandbox, outside: Outside) -> str | None:
    code = f"""
import os, time
born = 0
for _ in range({_LIMITS.processes // 2}):
    try: pid = os.fork()
    except OSError: break
    if pid == 0: block = bytearray(b"x") * ({_LIMITS.memory_mib * 3 // 4} << 20); time.sleep(5); os._exit(0)
    born += 1
for _ in range(born): os.wait()
print(born)
"""
    result = sandbox.run(code, limits=_LIMITS)
    if result.status == "memory limit" or result.stdout == "0\n":
        return None
    return f"its processes together held more memory than the limit: {_brief(result)}"


def _disk(sandbox: Sandbox, outside: Outside) -> str | None:
    code = f"""
import os
kept = []
for folder in (".", "/tmp", "/dev/shm", "/var/tmp", {str(outside.folder)!r}):
    for number in range({2 * _LIMITS.file_mib}):
        try:
            file = open(folder + "/{outside.secret}%d" % len(kept), "xb", buffering=0)
            kept.append(file)
            file.write(bytes(1 << 20))
        except OSError: break
print(sum(os.fstat(file.fileno()).st_size for file in kept))
for file in kept: os.unlink(file.name)
"""
    written = int(sandbox.run(code, limits=_LIMITS).stdout or 0)
    if written <= _LIMITS.file_mib << 20:
        return None
    return f"it wrote {written >> 20} MiB where {_LIMITS.file_mib} are allowed"


def _outliving(sandbox: Sandbox, outside: Outside) -> str | None:
    name = outside.secret[:15]  # as long as the kernel lets a process be called
    code = f"""
import ctypes, os, threading, time
ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3): os.close(fd)
            time.sleep(5)
        os._exit(0)
except OSError: pass
"""
    sandbox.run(code, limits=_LIMITS)
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # a process that ended meanwhile
            if comm.read_text().strip() == name:
                return "a process was left behind"
    return None


def _time(sandbox: Sandbox, outside: Outside) -> str | None:
    started = time.monotonic()
    result = sandbox.run("import time\nwhile True: time.sleep(1)", limits=Limits(wall_s=0.2))
    if result.status != "time limit":
        return f"a program that hangs was not ended: {_brief(result)}"
    taken = time.monotonic() - started
    return f"ending a program that hangs took {taken:.1f} s" if taken > _LIMITS.wall_s else None


def _output(sandbox: Sandbox, outside: Outside) -> str | None:
    result = sandbox.run("while True: print('x' * 1000)", limits=_LIMITS)
    return None if result.status == "output limit" else f"endless output was not cut: {_brief(result)}"


def _clock(sandbox: Sandbox, outside: Outside) -> str | None:
    code = "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())\nprint('SET')"
    return "it may set the machine's clock" if "SET" in sandbox.run(code, limits=_LIMITS).stdout else None


def _brief(result: SandboxResult) -> str:
    last = result.stderr.strip().rpartition("\n")[2]
    return f"{result.status}, exit code {result.exit_code}{f', {last}' if last else ''}"


ATTACKS: dict[str, Callable[[Sandbox, Outside], str | None]] = {
    "harmless program": _harmless,
    "files": _files,
    "environment": _environment,
    "processes": _processes,
    "network": _network,
    "fork bomb": _fork_bomb,
    "memory bomb": _memory_bomb,
    "memory of many": _memory_of_many,
    "disk filling": _disk,
    "outliving": _outliving,
    "time": _time,
    "output": _output,
    "clock": _clock,
}
"""Each returns what it saw if it succeeded, else None. The first tests whether the sandbox works at all."""
