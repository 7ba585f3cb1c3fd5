"""Every benchmark answers at toy size, in the common form."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "common")
NEEDS = {"verifier_scaling": ["ray"], "driver_memory": ["ray"], "two_nodes": ["vllm", "ray"]}
"""Extras: `make test-ray` and `make test-vllm` run what needs them."""
ALONE = {"math_grading", *NEEDS}
"""Not in the process of the tests: what forks from beside pytest's threads, or joins a cluster of its own."""

OPTIONS = {"ablations": ["--workers", "1"], "sample_efficiency": ["--workers", "1"]}
"""Each worker imports everything once more."""


def marked(name: str):
    needed = NEEDS.get(name, [])
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    reason = f"{', '.join(missing)} not installed here"
    skip = pytest.mark.skipif(bool(missing), reason=reason)
    return pytest.param(
        name, marks=[pytest.mark.slow, skip, *(getattr(pytest.mark, package) for package in needed[:1])]
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def start(name: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process where it can be, which has paid for the imports already."""
    script = BENCHMARKS / f"{name}.py"
    if name in ALONE:
        done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    importlib.import_module(name).main()


@pytest.mark.parametrize("name", [marked(name) for name in NAMES])
def test_quick_answers_in_the_common_form(name, models, tmp_path, monkeypatch):
    out = tmp_path / f"{name}.json"
    monkeypatch.chdir(tmp_path)
    start(name, ["--quick", "--out", str(out), "--models", str(models), *OPTIONS.get(name, [])], monkeypatch)
    result = json.loads(out.read_text())
    assert {"name", "versions", "machine", "rows", "headline"} <= result.keys()
    assert result["name"] == name
    assert {"cores", "threads", "device"} <= result["machine"].keys()
    assert result["rows"]
    assert result["headline"]
    failed = {row["part"]: row["error"] for row in result["rows"] if row.get("status") == "failed"}
    assert failed == {}, "a part of gpu.py loses only itself, so nothing else would say it"
