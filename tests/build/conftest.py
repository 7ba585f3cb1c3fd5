"""A file of labelled responses, and an implicit PRM that has learnt from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes import silent
from labelled_rows import PROMPTS, prm_settings, rows_of, write_rows
from priml.build.prm import run_prm_training


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("labelled") / "labelled.jsonl", rows_of(PROMPTS))


@pytest.fixture(scope="session")
def trained(warm_model: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an offline PRM trained with cross-entropy."""
    folder = tmp_path_factory.mktemp("prm") / "run"
    run_prm_training(prm_settings(warm_model, labelled, folder, epochs=6), silent)
    return folder
