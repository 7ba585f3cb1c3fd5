"""A run gets more steps; that nothing is lost on the way is tested in end_to_end/test_training.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from priml.config.load import dump_config, load_config, parse_config
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.runs.extend import extend
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, changes_since, create


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run of 10 steps, without its models."""
    given = {"run_dir": str(tmp_path), "steps": 10, "policy": {"model": "m"}, "data": {"train": "chain"}}
    folder = RunFolder(tmp_path)
    create(folder, parse_config(TrainConfig, given, where=""), None, Origin("train", 0, {}, {}, {}), threads=1)
    folder.metrics.write_text('{"step": 9}\n{"step": 10}\n')
    folder.summary.write_text("{}")
    return folder


@pytest.mark.parametrize(("steps", "total"), [("+5", 15), ("11", 11)])
def test_a_finished_run_gets_more_steps(folder: RunFolder, steps: str, total: int):
    extend(folder, steps)
    assert load_config(TrainConfig, folder.config).steps == total
    assert not folder.summary.exists()
    assert changes_since(folder, threads=1) == [], "no other setting has changed"


@pytest.mark.parametrize("steps", ["10", "3", "+0", "-4", "1e3", "+", "", "+2x"])
def test_what_is_no_number_of_further_steps_is_refused_and_nothing_changes(folder: RunFolder, steps: str):
    before = folder.config.read_text()
    with pytest.raises(UsageError, match=r"steps.*need"):
        extend(folder, steps)
    assert folder.config.read_text() == before
    assert folder.summary.exists()


def test_only_training_runs_are_extended(folder: RunFolder):
    manifest = json.loads(folder.manifest.read_text())
    folder.manifest.write_text(json.dumps(manifest | {"kind": "sft"}))
    with pytest.raises(UsageError, match="found a run of `priml sft`"):
        extend(folder, "+5")
    with pytest.raises(UsageError, match="not a run folder"):
        extend(RunFolder(folder.path / "nothing"), "+5")


def test_the_settings_stay_the_same_otherwise(folder: RunFolder):
    before = load_config(TrainConfig, folder.config)
    extend(folder, "+5")
    after = load_config(TrainConfig, folder.config)
    assert dump_config(after.model_copy(update={"steps": 10})) == dump_config(before)
