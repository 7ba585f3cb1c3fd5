"""Sandboxes to test, one per level that works on this machine; the others are skipped, each with its reason."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from priml.sandbox import Sandbox, SandboxUnavailable, interpreter
from priml.sandbox.choose import LEVELS
from priml.sandbox.selftest import Outside


def open_level(name: str, *, workers: int = 1) -> Sandbox:
    if not sys.platform.startswith("linux"):
        pytest.skip("isolation levels need Linux")
    try:
        return LEVELS[name](workers)
    except SandboxUnavailable as error:
        warnings.warn(f"NOT TESTED: isolation level {name}: {error}", stacklevel=1)
        pytest.skip(f"no isolation level {name} on this machine: {error}")


def is_running(pid: int) -> bool:
    """A zombie has ended already."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="session")
def sandbox_by_level() -> Iterator[Callable[[str], Sandbox]]:
    """Each level is started once: a parametrized fixture of the session would start one for every case."""
    with ExitStack() as stack:

        @cache
        def start(name: str) -> Sandbox:
            with pytest.MonkeyPatch.context() as patch:
                if name == "landlock" and os.getuid() == 0:
                    _interpreter_for_nobody(stack, patch)
                sandbox = open_level(name)
            stack.callback(sandbox.close)
            return sandbox

        yield start


@pytest.fixture(params=list(LEVELS))
def level(request: pytest.FixtureRequest, sandbox_by_level: Callable[[str], Sandbox]) -> Sandbox:
    """A sandbox of each level."""
    return sandbox_by_level(request.param)


@pytest.fixture(scope="session")
def strongest() -> Iterator[Sandbox]:
    """What `auto` would take."""
    for name in LEVELS:
        try:
            sandbox = LEVELS[name](2)
        except SandboxUnavailable:
            continue
        yield sandbox
        sandbox.close()
        return
    warnings.warn("NOT TESTED: no isolation level works on this machine; see `priml doctor`", stacklevel=1)
    pytest.skip("no isolation level works on this machine; see `priml doctor`")


@pytest.fixture
def outside() -> Iterator[Outside]:
    """What must not be touched from inside."""
    with ExitStack() as stack:
        yield Outside(stack)


def _interpreter_for_nobody(stack: ExitStack, patch: pytest.MonkeyPatch) -> None:
    """Root's own Python may lie where nobody may read it, which is no reason to leave the Landlock level untested."""
    base = Path(os.path.realpath(sys.base_prefix))
    if all(parent.stat().st_mode & 0o001 for parent in base.parents) and base.stat().st_mode & 0o005 == 0o005:
        return
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interpreter-for-nobody-")))
    copy.chmod(0o755)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (copy / "bin").mkdir()
    shutil.copy2(interpreter.executable(), copy / "bin" / version)
    unneeded = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "ensurepip", "config-*", "*.a")
    shutil.copytree(base / "lib" / version, copy / "lib" / version, ignore=unneeded)
    for library in base.glob("lib/libpython*.so*"):
        shutil.copy2(library, copy / "lib")
    visible = [str(copy) if path == str(base) else path for path in interpreter.visible()]
    patch.setattr(interpreter, "executable", lambda: str(copy / "bin" / version))
    patch.setattr(interpreter, "visible", lambda: visible)
