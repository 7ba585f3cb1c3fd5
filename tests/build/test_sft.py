import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from fakes import metrics_of, silent
from priml.build import run_sft
from priml.config.load import parse_config
from priml.config.sft import SftConfig
from priml.errors import RunError, UsageError


def config(run_dir, **settings):
    tree = {
        "run_dir": str(run_dir),
        "model": {"kind": "tiny", "width": 16, "layers": 1, "heads": 2},
        "data": {"kind": "walk", "length": 2, "states": 4, "operations": 5, "count": 12},
        "epochs": 1,
        "batch": 6,
        "optimizer": {"lr": 1e-3},
        "backend": {"device": "cpu"},
        **settings,
    }
    return parse_config(SftConfig, tree, where="test")


def test_the_same_command_twice_gives_the_same_model_and_another_seed_another(tmp_path):
    models = [run_sft(config(tmp_path / name, seed=seed), silent) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    weights = [(model / "model.safetensors").read_bytes() for model in models]
    assert weights[0] == weights[1] != weights[2]


def test_it_goes_on_from_a_model_folder(tmp_path, warm_model):
    said = []
    cfg = config(tmp_path / "run", model={"kind": "pretrained", "model": str(warm_model)})
    model = run_sft(cfg, said.append)
    assert said == ["sft: 12 examples, 2 steps, 0.01 M parameters, cpu fp32"]
    assert [record["step"] for record in metrics_of(cfg.run_dir)] == [1, 2]
    assert metrics_of(cfg.run_dir)[0]["sft/loss"] < 2.0
    assert AutoModelForCausalLM.from_pretrained(model).config.hidden_size == 16
    assert (model / "tokenizer.json").is_file()
    assert len(json.loads((cfg.run_dir / "manifest.json").read_text())["sha256"]["data"]["train"]) == 64


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    cfg = config(tmp_path / "run")
    run_sft(cfg, silent)
    with pytest.raises(UsageError, match="already holds a run; choose another run_dir"):
        run_sft(cfg, silent)
    shutil.rmtree(cfg.run_dir)
    run_sft(cfg, silent)


def test_a_non_finite_loss_names_the_step(tmp_path):
    cfg = config(tmp_path / "run", optimizer={"lr": 1e30}, warmup=0.0, epochs=3)
    with pytest.raises(RunError, match=r"step \d: SFT .*stopped before the optimizer moved; lower optimizer.lr"):
        run_sft(cfg, silent)
    assert not (cfg.run_dir / "model").exists()
