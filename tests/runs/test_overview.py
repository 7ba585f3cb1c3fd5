from __future__ import annotations

import json
from pathlib import Path

import pytest

from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, create
from priml.runs.overview import find_runs, read_overview
from priml.runs.owner import owned


def make_run(path: Path, *, steps: int = 4) -> RunFolder:
    """A training run without any step."""
    path.mkdir(parents=True)
    given = {"run_dir": str(path), "steps": steps, "policy": {"model": "m"}, "data": {"train": "chain"}}
    create(RunFolder(path), parse_config(TrainConfig, given, where=""), None, Origin("train", 0, {}, {}, {}), threads=1)
    return RunFolder(path)


def add_evaluation(folder: RunFolder, step: int, mean: float) -> None:
    path = folder.held_out(step)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"greedy": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}))


def test_runs_are_found_also_inside_of_others_and_not_among_their_files(tmp_path: Path):
    runs = [tmp_path / "b", tmp_path / "b" / "sft", tmp_path / "a" / "x"]
    for path in runs:
        make_run(path)
    make_run(tmp_path / "b" / "model" / "odd")  # inside of what a run exports
    make_run(tmp_path / ".hidden")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [folder.path for folder in find_runs(tmp_path)] == sorted(runs)
    with pytest.raises(UsageError, match="found no folder"):
        list(find_runs(tmp_path / "nothing"))


def test_a_run_has_a_state_a_step_and_its_accuracy(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    overview = read_overview(folder)
    assert (overview.state, overview.step, overview.steps, overview.before) == ("stopped", -1, 4, None)
    add_evaluation(folder, 0, 0.2)
    folder.metrics.write_text('{"step": 0}\n{"step": 1, "outcome/mean": 0.5}\n{"step": 2, "cut o')
    with owned(folder):
        overview = read_overview(folder)
    assert (overview.state, overview.step, overview.metrics["outcome/mean"]) == ("running", 1, 0.5)
    assert overview.before is not None
    assert (overview.before["mean"], overview.after) == (0.2, None)
    add_evaluation(folder, 4, 0.7)
    folder.summary.write_text("{}")
    overview = read_overview(folder)
    assert overview.state == "finished"
    assert overview.asdict()["after"]["mean"] == 0.7
    assert overview.next_command == f"priml report {folder}"


def test_a_damaged_run_is_named(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    folder.manifest.write_text("{")
    with pytest.raises(UsageError, match=r"run: a file of this run cannot be read \(JSONDecodeError"):
        read_overview(folder)
    with pytest.raises(UsageError, match="not a run folder"):
        read_overview(RunFolder(tmp_path))
