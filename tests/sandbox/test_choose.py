from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from priml import sandbox as public
from priml.sandbox import SandboxUnavailable, choose, levels, open_sandbox
from priml.sandbox.pool import LocalSandbox


def test_auto_takes_a_level_that_has_been_attacked_and_says_which(
    strongest: LocalSandbox, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        sandbox = open_sandbox("auto", workers=1)
    assert sandbox.run("print(1)").stdout == "1\n"
    assert sandbox.level in caplog.text
    assert sandbox.level.partition(";")[0] == strongest.level.partition(";")[0]
    sandbox.close()


def test_where_nothing_holds_it_refuses_with_instructions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(levels.shutil, "which", lambda name: None)
    monkeypatch.setattr(levels, "find_spec", lambda name: None)
    monkeypatch.setattr(choose, "LEVELS", {name: choose.LEVELS[name] for name in ("bubblewrap", "gvisor")})
    with pytest.raises(SandboxUnavailable) as refusal:
        open_sandbox("auto")
    for needed in ("apt-get install bubblewrap", "docker", "unsafe-subprocess", "docs/sandbox.md"):
        assert needed in str(refusal.value)


def test_a_level_that_fails_its_self_test_is_refused(strongest: LocalSandbox, monkeypatch: pytest.MonkeyPatch):
    """A wall with a hole: the temporary files of the machine are visible."""
    try:
        whole = levels.bubblewrap()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    words = list(whole.wall)
    link = words.index("/tmp", words.index("/run/program/tmp")) - 2
    leaky = (*words[:link], "--bind", "/tmp", "/tmp", *words[link + 3 :])
    monkeypatch.setitem(choose.LEVELS, "bubblewrap", lambda workers: LocalSandbox(replace(whole, wall=leaky)))
    with pytest.raises(SandboxUnavailable, match=r"self-test failed: files: it (read|wrote) a file outside"):
        open_sandbox("bubblewrap")


def test_unsafe_must_be_asked_for_and_warns(caplog: pytest.LogCaptureFixture):
    sandbox = open_sandbox("unsafe-subprocess")
    assert "unsafe-subprocess runs model-written code with your own rights" in caplog.text
    assert sandbox.level == "none (unsafe-subprocess)"


def test_the_module_function_runs_in_the_shared_sandbox(strongest: LocalSandbox):
    first = public.run("print(input() * 2)", stdin="ab")
    assert first.stdout == "abab\n"
    assert public.run("import time; time.sleep(9)", limits=public.Limits(wall_s=0.2)).status == "time limit"


def test_http_needs_an_address():
    with pytest.raises(SandboxUnavailable, match="url"):
        open_sandbox("http")


def test_the_survey_ends_with_the_level_that_holds(strongest: LocalSandbox):
    seen = list(choose.survey())
    assert [holds for _, holds, _ in seen] == [False] * (len(seen) - 1) + [True]
    assert "network" in seen[-1][2]
