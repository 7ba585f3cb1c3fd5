"""With a stand-in for the `docker` command that runs the same command line here; with a daemon, for real."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from priml.sandbox import Limits, ProgramEnded, SandboxLost, SandboxUnavailable, open_sandbox
from priml.sandbox.docker import DEFAULT_IMAGE, DockerSandbox
from priml.sandbox.interpreter import GUEST

STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys
here, words = os.path.dirname(os.path.abspath(__file__)), sys.argv[1:]
with open(here + "/calls", "a") as file: file.write(json.dumps(words) + "\\n")
if words[0] == "run":
    if os.path.exists(here + "/no-daemon"): sys.exit(125)
    with open(here + "/pid-" + words[words.index("--name") + 1], "w") as file: file.write(str(os.getpid()))
    inner = words[words.index("an-image") + 1:]
    inner = [{{"python": sys.executable, "/guest": {str(GUEST.parent)!r}}}.get(word, word) for word in inner]
    pid = os.spawnv(os.P_NOWAIT, inner[0], inner)
    status = os.waitpid(pid, 0)[1]
    sys.exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    command = tmp_path / "docker"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "calls"


def test_a_container_has_no_network_no_rights_and_bounded_memory(calls: Path):
    sandbox = DockerSandbox("an-image")
    result = sandbox.run("print(input() + '!')", stdin="hi", limits=Limits(memory_mib=256, file_mib=16, processes=9))
    assert (result.status, result.exit_code, result.stdout) == ("finished", 0, "hi!\n")
    line = calls.read_text()
    for words in (
        '"--network", "none"',
        '"--read-only"',
        '"--cap-drop", "ALL"',
        '"--user", "65534:65534"',
        '"no-new-privileges"',
        '"--memory", "400m", "--memory-swap", "400m"',
        '"--pids-limit", "10"',
        '"/tmp:size=16128k,mode=1777"',
        '"--shm-size", "256k"',
    ):
        assert words in line


def test_endings_are_told_apart(calls: Path):
    sandbox = DockerSandbox("an-image")
    assert sandbox.run("exit(3)").exit_code == 3
    assert sandbox.run("import os; os.abort()").exit_code == -6
    assert sandbox.run("while True: pass", limits=Limits(wall_s=60, cpu_s=1)).status == "time limit"
    assert sandbox.run("x = bytearray(1 << 30)", limits=Limits(memory_mib=64)).status == "memory limit"


def test_a_program_that_hangs_has_its_container_killed(calls: Path):
    result = DockerSandbox("an-image").run("import time; time.sleep(60)", limits=Limits(wall_s=0.5))
    assert result.status == "time limit"
    assert '["kill", "priml-sandbox-' in calls.read_text()


def test_a_conversation_goes_over_standard_input_and_output(calls: Path):
    with DockerSandbox("an-image").open("print('heard')\nwhile True: reply(receive()[::-1])") as session:
        assert session.ask(b"abc") == b"cba"
        assert session.ask(b"x" * 100_000) == b"x" * 100_000
    with DockerSandbox("an-image").open("print('heard')\n1 / 0") as session, pytest.raises(ProgramEnded) as over:
        session.ask(b"")
    assert "heard\n" in over.value.result.stderr
    assert "ZeroDivisionError" in over.value.result.stderr


def test_a_daemon_that_fails_is_our_loss(calls: Path):
    sandbox = DockerSandbox("an-image")
    (calls.parent / "no-daemon").touch()
    with pytest.raises(SandboxLost, match="exit code 125"):
        sandbox.run("print(1)")


@pytest.mark.parametrize("code", [1, 125, 127])
def test_no_exit_code_of_a_program_passes_for_a_failure_of_ours(calls: Path, code: int):
    result = DockerSandbox("an-image").run(f"import os; os._exit({code})")
    assert (result.status, result.exit_code, result.stderr) == ("finished", code, "")


def test_without_docker_or_daemon_it_refuses_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="docker is not installed"):
        open_sandbox("docker")


@pytest.mark.slow
def test_a_real_container_holds_off_every_attack():
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker daemon answers on this machine")
    if subprocess.run(["docker", "image", "inspect", DEFAULT_IMAGE], capture_output=True).returncode:
        pytest.skip(f"the image is not here: docker pull {DEFAULT_IMAGE}")
    sandbox = open_sandbox("docker")
    with sandbox.open("while True: reply(receive())") as session:
        assert session.ask(b"abc") == b"abc"
