"""What a sandbox is: the limits, what comes back, and how a caller converses with a program inside.

What a program sees, in every sandbox:

- Its code runs as the module `__main__`, from a file named `<program>`, on an interpreter without arguments. It can
  import installed packages; it sees none of our environment variables and files.
- `run` gives it `stdin` on file descriptor 0 and collects what it writes to 1 and 2.
- `open` gives it an empty standard input and two more global names that carry a conversation:

      receive() -> bytes         the next message; raises EOFError when the caller has closed the session
      reply(message: bytes)      the answer to it

  They read and write a channel of their own, messages of four bytes of length, big-endian, and then as many bytes. The
  program owns its end: whatever arrives from there may be a forgery, and is bytes from a stranger, never a verdict.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, Self

from priml.errors import PrimlError

Status = Literal["finished", "time limit", "memory limit", "output limit", "crash"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Going beyond a limit ends the program; it never harms the machine."""

    wall_s: float = 10.0
    """Seconds by the clock on the wall: of a `run`; in a session of each reply (the first includes the start)."""
    cpu_s: int = 10
    """Whole seconds of processor time of one process of the program, in all."""
    memory_mib: int = 1024
    """Address space of one process, on top of the interpreter's own (allocating more raises MemoryError); and memory of
    all its processes together (holding more ends the program)."""
    output_bytes: int = 1 << 20
    """Standard output and standard error together, and the longest reply in a session."""
    file_mib: int = 64
    """What it may write to its scratch folder. It is memory, and gone when the program ends."""
    processes: int = 32
    """Processes and threads at one time."""
    open_files: int = 128
    """Open file descriptors of one process."""

    def __post_init__(self) -> None:
        small = [name for name in self.__slots__ if getattr(self, name) <= 0]
        assert not small, f"sandbox limits must be positive: {small}"


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a program ended. Nothing in here proves that it is right: it can print whatever it likes."""

    status: Status
    """`finished`: it ended by itself, whatever its exit code. `crash`: a signal ended it."""
    exit_code: int | None
    """As a shell would have it, or minus the number of the signal that ended it. None when we ended it."""
    stdout: str
    """Decoded as UTF-8, undecodable bytes replaced; cut at the output limit."""
    stderr: str
    """Likewise. An uncaught exception is here, with its traceback."""
    seconds: float
    """Wall clock from the request to the end."""


class SandboxLost(PrimlError):
    """The sandbox broke: our failure, never the program's. A caller retries once; then the verdict is undecided."""


class SandboxUnavailable(PrimlError):
    """No isolation works on this machine, or not the one asked for: code is not run. The message says what to do."""

    exit_code = 2


class ProgramEnded(Exception):
    """The program of a session ended, or was ended at a limit, before it had replied."""

    def __init__(self, result: SandboxResult) -> None:
        super().__init__(f"{result.status}, exit code {result.exit_code}")
        self.result = result


class Session(Protocol):
    """A program that is running, and that one thread converses with."""

    def ask(self, message: bytes, *, wall_s: float | None = None) -> bytes:
        """Return the program's reply to `message`, which may be a forgery.

        `wall_s` replaces the limits' `wall_s` for this reply.

        Raises:
            ProgramEnded: there will be no reply: the program ended, hit a limit or replied more than `output_bytes`.
            SandboxLost: a failure of ours.
        """
        ...

    def close(self) -> None:
        """End the program and all that it started. It may be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Sandbox(Protocol):
    """Runs strangers' code. `run` and `open` may be called from any number of threads at once."""

    @property
    def level(self) -> str:
        """The isolation in force, for logs."""
        ...

    def run(self, code: str, *, stdin: str = "", limits: Limits = ...) -> SandboxResult:
        """Run a program to its end. Raises `SandboxLost` on a failure of ours."""
        ...

    def open(self, code: str, *, limits: Limits = ..., upcoming: str | None = None) -> Session:
        """Start a program to converse with (see above). Its code runs up to its first `receive()`.

        `upcoming` is the text that the conversation will have it run; None: unknown. If it names neither numpy nor
        sympy, the start is faster; otherwise these are imported already.
        """
        ...

    def close(self) -> None:
        """End every program and process of this sandbox."""
        ...
