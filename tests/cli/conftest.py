from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from priml.cli.main import main
from priml.models.tiny import character_tokenizer, tiny_model


@dataclass(frozen=True)
class Outcome:
    """What a command did, as a shell sees it."""

    code: int
    out: str
    err: str


@pytest.fixture
def priml(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    """`priml(...)` runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse
            code = exit.code
        captured = capfd.readouterr()
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand weights that has learned nothing."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(name, settings)` makes a settings file."""

    def settings_file(name: str, settings: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings))
        return path

    return settings_file


@pytest.fixture
def training(model_folder: Path) -> dict[str, Any]:
    """A training file that a second is enough for."""
    task = {"kind": "chain", "count": 32, "length": 3, "modulus": 5}
    return {
        "run_dir": "run",
        "steps": 1,
        "policy": {"model": str(model_folder)},
        "sampling": {"group_size": 2, "max_new_tokens": 6},
        "batch": {"prompts": 2},
        "filter": None,
        "data": {"train": task},
        "evaluate": {"data": task | {"split": "held_out", "count": 4}},
    }


@pytest.fixture
def settings(training: dict[str, Any], model_folder: Path) -> dict[str, dict[str, Any]]:
    """A settings file for each command that has a model and data; `place` says where they stand in it."""
    task = training["data"]["train"]
    return {
        "train": training,
        "sft": {
            "run_dir": "run",
            "model": {"kind": "pretrained", "model": str(model_folder)},
            "data": task,
            "epochs": 1,
        },
        "eval": {"run_dir": "run", "model": str(model_folder), "data": {"a": task}, "max_new_tokens": 6},
    }
