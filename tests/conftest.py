"""A tiny model that knows the form of an answer and little else, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: width 16, one layer, half a second of supervised training."""
    from priml.build import run_sft
    from priml.config.load import parse_config
    from priml.config.sft import SftConfig

    settings = {
        "run_dir": str(tmp_path_factory.mktemp("warm") / "sft"),
        "model": {"kind": "tiny", "width": 16, "layers": 1, "heads": 2},
        "data": {"kind": "walk", "length": 2, "states": 4, "operations": 5, "count": 60},
        "epochs": 20,
        "batch": 20,
        "optimizer": {"lr": 1e-2},
        "backend": {"device": "cpu"},
    }
    return run_sft(parse_config(SftConfig, settings, where="the warm model"), lambda text: None)
