"""Opens a sandbox by name, or the strongest one that proves itself here."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

from priml.sandbox import levels, selftest
from priml.sandbox.base import Limits, Sandbox, SandboxLost, SandboxResult, SandboxUnavailable
from priml.sandbox.docker import DEFAULT_IMAGE, DockerSandbox
from priml.sandbox.guest.syscalls import MACHINES
from priml.sandbox.levels import Level
from priml.sandbox.pool import LocalSandbox
from priml.sandbox.service import HttpSandbox
from priml.sandbox.unsafe import UnsafeSubprocess

Kind = Literal["auto", "bubblewrap", "namespaces", "landlock", "docker", "http", "unsafe-subprocess"]

LEVELS: dict[str, Callable[[], Level]] = {
    "bubblewrap": levels.bubblewrap,
    "namespaces": levels.namespaces,
    "landlock": levels.landlock,
}
"""Strongest first: the order in which `auto` tries them."""

_log = logging.getLogger(__name__)
_ADVICE = (
    "Code is not run without isolation. On Linux install bubblewrap (apt-get install bubblewrap) and see that user "
    "namespaces are allowed; elsewhere use `kind: docker` or `kind: http`; docs/sandbox.md has the details. Only for "
    "code that you trust as your own: `kind: unsafe-subprocess`."
)


def open_sandbox(
    kind: Kind = "auto", *, workers: int | None = None, image: str | None = None, url: str | None = None
) -> Sandbox:
    """A sandbox of that kind that has just proved itself: it was attacked (see `selftest`) and held.

    `auto` takes the strongest of bubblewrap, namespaces and landlock that holds. `workers` zygotes serve programs, as
    many as there are cores by default. `image` is for `docker`, `url` for `http`.

    Raises `SandboxUnavailable`, with what to do, when none holds.
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
        return _proven(_local(kind, workers))
    failures: list[str] = []
    for name in LEVELS:
        try:
            return _proven(_local(name, workers))
        except SandboxUnavailable as error:
            failures.append(f"{name}: {error}")
    raise SandboxUnavailable("no isolation level holds on this machine:\n  " + "\n  ".join([*failures, _ADVICE]))


def survey() -> Iterator[tuple[str, bool, str]]:
    """Each level that `auto` would try, up to the one it would take: its name, whether it holds, and what was seen."""
    for name in LEVELS:
        try:
            sandbox = _local(name, workers=1)
        except SandboxUnavailable as error:
            yield name, False, str(error)
            continue
        try:
            probes = list(selftest.probe(sandbox))
        except SandboxLost as error:
            yield name, False, str(error)
            continue
        finally:
            sandbox.close()
        breaches = [f"{probe.name}: {probe.text}" for probe in probes if not probe.holds]
        held = f"{sandbox.level.rpartition(';')[0]}; held: {', '.join(probe.name for probe in probes if probe.holds)}"
        yield name, not breaches, "; ".join(breaches) or held
        if not breaches:
            return


def _local(name: str, workers: int | None) -> Sandbox:
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"needs Linux, this is {sys.platform}")
    if os.uname().machine not in MACHINES:
        raise SandboxUnavailable(f"knows the system calls of {' and '.join(MACHINES)}, not of {os.uname().machine}")
    return LocalSandbox(LEVELS[name](), workers=workers)


def _proven(sandbox: Sandbox) -> Sandbox:
    try:
        breaches = [f"{probe.name}: {probe.text}" for probe in selftest.probe(sandbox) if not probe.holds]
    except SandboxLost as error:
        breaches = [str(error)]
    if breaches:
        sandbox.close()
        raise SandboxUnavailable(f"the self-test failed: {'; '.join(breaches)}")
    _log.info("sandbox: %s", sandbox.level)
    return sandbox


def _answering(sandbox: HttpSandbox) -> Sandbox:
    """What holds at a service cannot be seen from here; that it works at all can."""
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
