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
    """For programs that hang or fill the memory on purpose."""
    return CodeVerifier(sandbox, limits=Limits(wall_s=3, cpu_s=3, memory_mib=256), stop_early=True)
