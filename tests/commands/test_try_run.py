from __future__ import annotations

from pathlib import Path

import pytest

from priml.cli.main import main
from priml.commands.train import run_training
from priml.config.load import parse_config
from priml.config.train import TrainConfig


@pytest.fixture(scope="module")
def run_dir(warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose rate has ruined its model: the two sides differ."""
    folder = tmp_path_factory.mktemp("try") / "run"
    settings = {
        "run_dir": str(folder),
        "steps": 1,
        "policy": {"model": str(warm_model), "optimizer": {"lr": 1.0}},
        "prm": None,
        "data": {"train": {"kind": "walk", "states": 4, "operations": 4, "length": 2, "count": 16}},
        "sampling": {"group_size": 4, "max_new_tokens": 8},
        "batch": {"prompts": 4},
        "filter": None,
        "backend": {"device": "cpu"},
    }
    run_training(parse_config(TrainConfig, settings, where=""))
    return folder


def test_held_out_problems_are_answered_by_both_models(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["try", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert out.count("before") == out.count("(gold: ") == 3
    rows = [line for line in out.splitlines() if "boxed" in line]
    assert rows, "the warm start boxes its answers"
    assert any(row[:50].strip() != row[50:].strip() for row in rows), "the ruined model answers otherwise"


def test_questions_can_be_given_and_hostile_answers_stay_text(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["try", str(run_dir), "3AB=", "1A\x1b[31mB="]) == 0
    out = capsys.readouterr().out
    assert "prompt 1: 3AB=" in out
    assert "prompt 2: 1A\\x1b[31mB=" in out
    assert "gold" not in out


def test_a_folder_without_a_trained_policy_is_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["try", str(tmp_path)]) == 2
    assert "found no run of `priml train`" in capsys.readouterr().err
    (run_dir / "model").rename(run_dir / "aside")
    try:
        assert main(["try", str(run_dir)]) == 2
        assert f"first: priml train {run_dir}" in capsys.readouterr().err
    finally:
        (run_dir / "aside").rename(run_dir / "model")
