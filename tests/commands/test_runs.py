from __future__ import annotations

import json
from pathlib import Path

import pytest

from priml.cli.main import main
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, create


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that stopped after its first step."""
    folder = RunFolder(tmp_path / "mine")
    folder.path.mkdir()
    given = {
        "run_dir": str(folder),
        "steps": 4,
        "policy": {"model": "m", "mini_batch": None, "optimizer": {"lr": 1e-5}},
        "data": {"train": "chain"},
    }
    create(folder, parse_config(TrainConfig, given, where=""), None, Origin("train", 0, {}, {}, {}), threads=1)
    folder.metrics.write_text('{"step": 1, "outcome/mean": 0.5, "alarm/entropy": 1}\n')
    folder.held_out(0).parent.mkdir()
    folder.held_out(0).write_text('{"greedy": {"mean": 0.2, "low": 0.1, "high": 0.3}}')
    return folder


def test_the_list_has_a_line_for_each_run(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["runs", "list", str(folder.path.parent)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "mine" in line]
    assert line.split()[:6] == ["mine", "stopped", "1/4", "0.200", "[0.100,", "0.300]"]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["runs", "list", str(folder.path.parent)]) == 0
    assert "0.100" not in capsys.readouterr().out, "there is no room for intervals"
    assert main(["runs", "list", str(folder.path.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 1


def test_a_run_is_shown_with_what_is_not_the_default_and_what_to_type(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    assert main(["runs", "show", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: priml train, stopped after step 1 of 4"
    assert "held-out greedy: 0.200 [0.100, 0.300] -> not evaluated again" in lines
    assert "alarms at the last step: entropy" in lines
    assert {"  policy.optimizer.lr: 1e-05", "  policy.mini_batch: null", '  data.train.kind: "chain"'} < set(lines)
    assert not any(line.startswith("  sampling.") for line in lines)
    assert lines[-1] == f"next: priml train {folder}"


def test_where_no_run_is_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "list", str(tmp_path)]) == 2
    assert "found no run in it" in capsys.readouterr().err
