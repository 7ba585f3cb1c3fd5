"""Loading says what is wrong with a folder, and never trains on random numbers or dropout by accident."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from priml.errors import ModelError
from priml.models.load import load_model, load_tokenizer
from priml.models.tiny import character_tokenizer

CPU = torch.device("cpu")
LOADERS: list[Callable[[str], Any]] = [lambda source: load_model(source, device=CPU), load_tokenizer]


@pytest.fixture
def folder(save_model_of: Callable[..., Path], tmp_path: Path) -> Path:
    return save_model_of("llama", tmp_path / "made")


def test_a_model_comes_in_float32_in_eval_mode_whatever_it_was_saved_in(folder: Path) -> None:
    weights = {name: w.bfloat16() for name, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    module = load_model(str(folder), device=CPU)

    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_no_dropout_is_left(save_model_of: Callable[..., Path], tmp_path: Path) -> None:
    module = load_model(str(save_model_of("opt", tmp_path)), device=CPU).train()
    tokens_bl = torch.arange(12).view(2, 6)
    first, second = (module(input_ids=tokens_bl).logits for _ in range(2))
    assert torch.equal(first, second)
    assert all(m.p == 0.0 for m in module.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "runs/sft/model"])
def test_a_path_that_does_not_exist(load: Callable[[str], Any], source: str) -> None:
    with pytest.raises(ModelError, match=f"{source}: no such model folder; give a Hugging Face folder or a Hub id"):
        load(source)


@pytest.mark.parametrize("load", LOADERS)
def test_a_file_is_not_a_model_folder(load: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="no such model folder"):
        load(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("load", LOADERS)
def test_a_run_folder_is_answered_with_its_model_folder(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config.json in it\)$"):
        load(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"did you mean .*model\?"):
        load(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not safetensors", bytes(64)])
def test_broken_weights(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"could be loaded from this folder: .*export it again"):
        load_model(str(folder), device=CPU)


def test_cut_off_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="could be loaded from this folder"):
        load_model(str(folder), device=CPU)


def test_missing_weights_are_not_replaced_by_random_ones(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights of LlamaForCausalLM are missing, the first {gone}"):
        load_model(str(folder), device=CPU)


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(ModelError, match="could be loaded from this folder"):
        load_model(str(folder), device=CPU)


def test_a_pickle_is_never_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(folder), device=CPU)


@pytest.mark.parametrize("content", ["{", '{"model_type": "no such thing"}', '{"model_type": "t5"}'])
def test_a_config_of_no_causal_language_model(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="no causal language model could be loaded"):
        load_model(str(tmp_path), device=CPU)


def test_a_folder_without_tokenizer(folder: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer could be loaded from this folder"):
        load_tokenizer(str(folder))


def test_a_tokenizer_without_eos(folder: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(str(folder)).eos_token_id == tokenizer.eos_token_id

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(ModelError, match="no EOS token, so responses could never end; set `eos_token`"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("load", LOADERS)
def test_a_hub_id_out_of_reach(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import
    with pytest.raises(ModelError, match=r"nobody/nothing: not a folder here, .* check the spelling, the net"):
        load("nobody/nothing")
