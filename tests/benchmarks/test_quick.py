"""Every benchmark answers at toy size, in the common form."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "common")
NEEDS = {"verifier_scaling": ["ray"], "driver_memory": ["ray"], "two_nodes": ["vllm", "ray"]}
"""Packages that are extras; the tests that need them are run where they are: `.ci/run`."""


def marked(name: str):
    needed = NEEDS.get(name, [])
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    reason = f"{', '.join(missing)} not installed here: see .ci/run"
    skip = pytest.mark.skipif(bool(missing), reason=reason)
    return pytest.param(
        name, marks=[pytest.mark.slow, skip, *(getattr(pytest.mark, package) for package in needed[:1])]
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", [marked(name) for name in NAMES])
def test_quick_answers_in_the_common_form(name, models, tmp_path):
    out = tmp_path / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--out", str(out), "--models", str(models)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert {"name", "versions", "machine", "rows", "headline"} <= result.keys()
    assert result["name"] == name
    assert {"cores", "threads", "device"} <= result["machine"].keys()
    assert result["rows"]
    assert result["headline"]
