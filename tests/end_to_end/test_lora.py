"""Whole runs in which adapters learn: the weights beside them stay, and exports are what was trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes import tiny_config
from priml.commands.eval import run_eval
from priml.commands.prm_score import run_prm_score
from priml.commands.train import run_training
from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.config.prm import PrmScoreConfig
from priml.config.train import TrainConfig
from priml.models.checkpoint import weights_digest
from priml.models.load import load_model
from priml.runs.folder import RunFolder

HELD_OUT = {"kind": "walk", "split": "held_out", "length": 2, "states": 4, "operations": 5, "count": 8}
STEPS = 4


def lora(export: str, *overrides: str) -> Sequence[str]:
    adapters = [f"{role}.lora={{rank: 4, export: {export}}}" for role in ("policy", "prm")]
    rates = [f"{role}.optimizer.lr=1.0e-2" for role in ("policy", "prm")]
    return (*adapters, *rates, f"evaluate={{data: {json.dumps(HELD_OUT)}, every: {STEPS}, samples: 2}}", *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, warm_model: Path) -> TrainConfig:
    """A run that leaves merged weights."""
    cfg = tiny_config(tmp_path_factory.mktemp("lora"), warm_model, *lora("merged", f"steps={STEPS}"))
    run_training(cfg)
    return cfg


@pytest.fixture(scope="module")
def same_run(tmp_path_factory: pytest.TempPathFactory, warm_model: Path) -> TrainConfig:
    """The same run, which leaves adapters."""
    cfg = tiny_config(tmp_path_factory.mktemp("adapter"), warm_model, *lora("adapter", f"steps={STEPS}"))
    run_training(cfg)
    return cfg


def test_a_checkpoint_is_small_and_holds_no_frozen_weights(run: TrainConfig):
    for role in ("policy", "prm"):
        weights = load_file(RunFolder(run.run_dir).checkpoints()[-1] / role / "weights.safetensors")
        assert all(".lora_" in name for name in weights)


def test_the_frozen_weights_are_those_of_the_model_folder(run: TrainConfig, warm_model: Path):
    initial = load_file(warm_model / "model.safetensors")
    for name in ("model", "prm"):
        exported = load_file(run.run_dir / name / "model.safetensors")
        assert exported.keys() == initial.keys()
        moved = {key for key in initial if not torch.equal(exported[key], initial[key])}
        assert moved == {key for key in initial if key.endswith("_proj.weight")}


def test_both_kinds_of_export_are_the_same_model(run: TrainConfig, same_run: TrainConfig):
    cpu = torch.device("cpu")
    for name in ("model", "prm"):
        merged, adapter = (load_model(str(each.run_dir / name), device=cpu) for each in (run, same_run))
        assert weights_digest(merged) == weights_digest(adapter)
    assert not (same_run.run_dir / "model" / "model.safetensors").exists()
    cards = [(each.run_dir / "prm" / "implicit_prm.json").read_text() for each in (run, same_run)]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("kind", ["run", "same_run"], ids=["merged", "adapter"])
def test_an_export_is_evaluated_as_the_live_policy_was(request: Any, tmp_path: Path, kind: str):
    cfg: TrainConfig = request.getfixturevalue(kind)
    tree = {
        "run_dir": str(tmp_path / "eval"),
        "model": str(cfg.run_dir / "model"),
        "data": {"held_out": HELD_OUT},
        "verify": cfg.verify.model_dump(mode="json"),
        "max_new_tokens": cfg.sampling.max_new_tokens,
        "backend": {"device": "cpu"},
    }
    scores = run_eval(parse_config(EvalConfig, tree, where="test"))
    live = json.loads((cfg.run_dir / "summary.json").read_text())["accuracy"]["after"]
    assert scores["held_out"]["greedy"]["mean"] == live["greedy"]["mean"]


def test_an_exported_adapter_scores_as_a_prm(same_run: TrainConfig, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "0AB=", "response": "12\\boxed{2}"}))
    tree = {
        "run_dir": str(tmp_path / "score"),
        "prm": {"model": str(same_run.run_dir / "prm")},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "backend": {"device": "cpu"},
    }
    run_prm_score(parse_config(PrmScoreConfig, tree, where="test"))
    assert json.loads((tmp_path / "score" / "summary.json").read_text())["responses"] == 1


def test_a_run_goes_on_from_the_adapter_of_another(same_run: TrainConfig, tmp_path: Path):
    cfg = tiny_config(tmp_path, same_run.run_dir / "model", *lora("adapter", "steps=1"))
    run_training(cfg)
    assert (cfg.run_dir / "model" / "adapter_model.safetensors").is_file()
