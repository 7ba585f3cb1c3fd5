"""Open a sandbox by name, or the strongest one that passes its self-test here."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

from priml.sandbox import levels, selftest
from priml.sandbox.base import Limits, Sandbox, SandboxLost, SandboxResult, SandboxUnavailable
from priml.sandbox.child import UnsafeSubprocess
from priml.sandbox.docker import DEFAULT_IMAGE, DockerSandbox
from priml.sandbox.guest.seccomp import MACHINES
from priml.sandbox.gvisor import GvisorSandbox
from priml.sandbox.pool import LocalSandbox
from priml.sandbox.service import HttpSandbox

Kind = Literal["auto", "bubblewrap", "gvisor", "landlock", "docker", "http", "unsafe-subprocess"]

LEVELS: dict[str, Callable[[int | None], Sandbox]] = {
    "bubblewrap": lambda workers: LocalSandbox(levels.bubblewrap(), workers=workers),
    "gvisor": lambda workers: GvisorSandbox(workers=workers),
    "landlock": lambda workers: LocalSandbox(levels.landlock(), workers=workers),
}
"""The levels that `auto` tries, in this order, each with a function of the number of workers."""

_log = logging.getLogger(__name__)
_ADVICE = (
    "Code is not run without isolation. On Linux install bubblewrap (apt-get install bubblewrap) and see that user "
    "namespaces are allowed; elsewhere use `kind: docker` or `kind: http`; docs/sandbox.md has the details. Only for "
    "code that you trust as your own: `kind: unsafe-subprocess`."
)


def open_sandbox(
    kind: Kind = "auto", *, workers: int | None = None, image: str | None = None, url: str | None = None
) -> Sandbox:
    """Return a sandbox of that kind that has just passed its self-test (see `selftest`).

    Args:
        kind: `auto` takes the first of bubblewrap, gvisor and landlock that passes.
        workers: Programs that run at once; by default one for each core.
        image: For `docker`.
        url: For `http`.

    Raises:
        SandboxUnavailable: none passes; with what to do.
    """
    if kind == "unsafe-subprocess":
        return UnsafeSubprocess()
    if kind == "docker":
        return _proven(DockerSandbox(image or DEFAULT_IMAGE, workers=workers))
    if kind == "http":
        if url is None:
            raise SandboxUnavailable("kind http needs a url, such as http://localhost:8080")
        return _answering(HttpSandbox(url, workers=workers))
    if kind in LEVELS:
        return _proven(_open_level(kind, workers))
    failures: list[str] = []
    for name in LEVELS:
        try:
            return _proven(_open_level(name, workers))
        except SandboxUnavailable as error:
            failures.append(f"{name}: {error}")
    raise SandboxUnavailable("no isolation level holds on this machine:\n  " + "\n  ".join([*failures, _ADVICE]))


def survey() -> Iterator[tuple[str, bool, str]]:
    """Yield each level that `auto` would try, up to the one it would take: name, whether it passed, what was seen."""
    for name in LEVELS:
        try:
            sandbox = _open_level(name, workers=1)
        except SandboxUnavailable as error:
            yield name, False, str(error)
            continue
        breaches = _breaches(sandbox)
        sandbox.close()
        words = sandbox.level.removesuffix("; 1 workers")
        yield name, not breaches, "; ".join(breaches) or f"{words}; withstood: {', '.join(selftest.ATTACKS)}"
        if not breaches:
            return


def _open_level(name: str, workers: int | None) -> Sandbox:
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"needs Linux, this is {sys.platform}")
    if os.uname().machine not in MACHINES:
        raise SandboxUnavailable(f"knows the system calls of {' and '.join(MACHINES)}, not of {os.uname().machine}")
    return LEVELS[name](workers)


def _breaches(sandbox: Sandbox) -> list[str]:
    try:
        return [f"{name}: {breach}" for name, breach in selftest.probe(sandbox) if breach is not None]
    except SandboxLost as error:
        return [str(error)]


def _proven(sandbox: Sandbox) -> Sandbox:
    if breaches := _breaches(sandbox):
        sandbox.close()
        raise SandboxUnavailable(f"the self-test failed: {'; '.join(breaches)}")
    _log.info("sandbox: %s", sandbox.level)
    return sandbox


def _answering(sandbox: HttpSandbox) -> Sandbox:
    """Return the sandbox if it works at all. What isolation it has cannot be seen from here."""
    try:
        result = sandbox.run("print(input()[::-1])", stdin="ab")
    except SandboxLost as error:
        raise SandboxUnavailable(str(error)) from error
    if result.stdout.strip() != "ba":
        raise SandboxUnavailable(f"the service does not run Python as expected: {result}")
    _log.info("sandbox: %s", sandbox.level)
    return sandbox


def run(code: str, *, stdin: str = "", limits: Limits = Limits()) -> SandboxResult:  # noqa: B008 (frozen)
    """Run a program in the shared sandbox of this process, which is opened (`auto`) at the first call."""
    return _shared(os.getpid()).run(code, stdin=stdin, limits=limits)


@cache
def _shared(pid: int) -> Sandbox:  # by process: a fork must not share its parent's sockets
    return open_sandbox("auto")
