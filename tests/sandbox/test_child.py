from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from priml.sandbox.child import UnsafeSubprocess

from .conftest import is_running


def test_a_program_does_not_inherit_our_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    said = UnsafeSubprocess().run("import os; print(dict(os.environ))").stdout
    assert "PATH" in said
    assert "secret" not in said


def test_children_in_its_session_end_with_it_and_files_are_closed():
    before = len(os.listdir("/proc/self/fd")) if Path("/proc").exists() else 0
    code = "import os, time\npid = os.fork()\nif pid == 0: time.sleep(60)\nprint(pid)"
    child = int(UnsafeSubprocess().run(code).stdout)
    deadline = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < deadline, "a child was left"
        time.sleep(0.01)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
