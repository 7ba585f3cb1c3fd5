"""One sandbox for all, or a skip that says what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from priml.graders.code import CodeVerifier
from priml.sandbox import Limits, Sandbox, SandboxUnavailable, open_sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    try:
        sandbox = open_sandbox("auto")
    except SandboxUnavailable as error:
        pytest.skip(f"no isolation holds here, so no program is run: {error}")
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="session")
def verifier(sandbox: Sandbox) -> CodeVerifier:
    return CodeVerifier(sandbox)


@pytest.fixture(scope="session")
def impatient(sandbox: Sandbox) -> CodeVerifier:
    """For programs that hang: on a busy machine it may end any other by the clock on the wall, too."""
    return CodeVerifier(sandbox, limits=Limits(wall_s=3, cpu_s=3, memory_mib=256), stop_early=True)


@pytest.fixture(scope="session")
def bounded(sandbox: Sandbox) -> CodeVerifier:
    """For programs that reach other limits than that of the clock on the wall."""
    return CodeVerifier(sandbox, limits=Limits(wall_s=60, cpu_s=2, memory_mib=256), stop_early=True)
