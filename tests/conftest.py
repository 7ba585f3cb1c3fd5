"""A tiny model that knows the form of an answer and little else, made once per session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with contextlib.suppress(ImportError):  # the environment of vLLM has none, and its tests need none
    from hypothesis import HealthCheck, settings

    # How long something takes is for benchmarks to say: a busy machine fails no test.
    # Few examples a run: they are other ones each time, and the tests run often.
    settings.register_profile("untimed", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The messages of a test."""
    from fakes import messages

    with messages() as said:
        yield said


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: width 16, one layer, half a second of supervised training."""
    return _trained(tmp_path_factory.mktemp("warm"), width=16, heads=2)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with attention heads as wide as vLLM's CPU build needs."""
    return _trained(tmp_path_factory.mktemp("wide"), width=64, heads=2)


def _trained(folder: Path, *, width: int, heads: int) -> Path:
    from priml.commands.sft import run_sft
    from priml.config.load import parse_config
    from priml.config.sft import SftConfig

    settings = {
        "run_dir": str(folder / "sft"),
        "model": {"kind": "tiny", "width": width, "layers": 1, "heads": heads},
        "data": {"kind": "walk", "length": 2, "states": 4, "operations": 5, "count": 60},
        "epochs": 20,
        "batch": 20,
        "optimizer": {"lr": 1e-2},
        "backend": {"device": "cpu"},
    }
    return run_sft(parse_config(SftConfig, settings, where="the warm model"))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of labelled responses."""
    from labelled_rows import PROMPTS, make_rows, write_rows

    return write_rows(tmp_path_factory.mktemp("labelled") / "labelled.jsonl", make_rows(PROMPTS))


@pytest.fixture(scope="session")
def trained(warm_model: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an offline PRM trained on them with cross-entropy."""
    from labelled_rows import prm_settings
    from priml.commands.prm_train import run_prm_training

    folder = tmp_path_factory.mktemp("prm") / "run"
    run_prm_training(prm_settings(warm_model, labelled, folder, epochs=6))
    return folder


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """A small Ray cluster for all tests of this process that are marked `ray`."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'priml[cluster]'")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"RAY_worker_niceness": "0"}
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
