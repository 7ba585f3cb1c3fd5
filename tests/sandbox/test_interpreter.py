from __future__ import annotations

import os
from pathlib import Path

from priml.sandbox import interpreter


def test_the_interpreter_is_the_real_file_not_a_link_or_a_shim():
    assert os.path.realpath(interpreter.executable()) == interpreter.executable()


def test_nothing_is_visible_but_the_interpreter_its_libraries_and_its_packages():
    visible = [Path(path) for path in interpreter.visible()]
    assert interpreter.GUEST in visible
    for private in (Path.home(), Path.cwd(), Path("/"), Path("/etc"), Path("/tmp"), Path("/proc")):
        assert private not in visible
    for path in interpreter.packages():
        assert Path(path).name in ("site-packages", "dist-packages")
        assert Path(path) in visible


def test_the_environment_of_programs_has_nothing_of_ours(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "secret" not in interpreter.environment().values()
