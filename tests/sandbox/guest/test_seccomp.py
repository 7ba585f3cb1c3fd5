from __future__ import annotations

import re
from pathlib import Path

import pytest

from priml.sandbox.guest.seccomp import (
    FORBIDDEN,
    FORBIDDEN_AMONG_PROCESSES,
    FORBIDDEN_ON_SHARED_FILES,
    MACHINES,
    numbers,
)

TABLES = (FORBIDDEN, FORBIDDEN_ON_SHARED_FILES, FORBIDDEN_AMONG_PROCESSES)
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernels_headers(machine: str):
    header = Path(HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"{header} is not on this machine")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
    known = {name: int(number) for name, number in pattern.findall(header.read_text())}
    for table in TABLES:
        for name, x86, arm in re.findall(r"(\w+) (\d+) (\d+|-)", table):
            number = (x86, arm)[MACHINES.index(machine)]
            assert number == ("-" if name not in known else str(known[name])), name


@pytest.mark.parametrize("machine", MACHINES)
def test_no_call_is_forbidden_twice(machine: str):
    listed = list(numbers(";".join(TABLES), machine))
    assert len(listed) == len(set(listed)) > 80
