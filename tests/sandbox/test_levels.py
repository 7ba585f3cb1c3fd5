from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from priml.sandbox import SandboxUnavailable, interpreter, levels

from .conftest import open_level


def test_bubblewrap_is_started_with_an_empty_environment_and_shows_no_more_than_is_needed():
    try:
        level = levels.bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    assert level.environment == {}, "its first process would show it to all"
    words = level.wall
    shown = [words[i + 1] for i, word in enumerate(words) if word == "--ro-bind"]
    assert set(shown) <= set(interpreter.visible())
    assert "--bind" not in words, "nothing is writable"


def test_bubblewrap_that_is_missing_comes_with_what_to_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(levels.shutil, "which", lambda name: None)
    monkeypatch.setattr(levels, "find_spec", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        levels.bubblewrap()


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes nobody")
def test_landlock_says_what_nobody_may_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    closed = tmp_path / "python"
    closed.mkdir()
    closed.chmod(stat.S_IRWXU)
    monkeypatch.setattr(interpreter, "visible", lambda: [str(closed)])
    with pytest.raises(SandboxUnavailable, match=f"nobody, who may not read {closed}"):
        levels.landlock()


@pytest.mark.parametrize("name", ["bubblewrap", "gvisor"])
def test_packages_below_tmp_are_found_although_programs_have_their_own_tmp(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)  # as root, programs run as nobody
    (tmp_path / "here.py").write_text("x = 5")
    packages = [*interpreter.packages(), str(tmp_path)]
    visible = [*interpreter.visible(), str(tmp_path)]
    monkeypatch.setattr(interpreter, "packages", lambda: packages)
    monkeypatch.setattr(interpreter, "visible", lambda: visible)
    sandbox = open_level(name)
    code = "import here, numpy, os\nopen('/tmp/f', 'w').close()\nprint(here.x, here.__file__, os.listdir('/tmp'))"
    assert sandbox.run(code).stdout == f"5 /opt/aside{tmp_path}/here.py ['f']\n"
    sandbox.close()
