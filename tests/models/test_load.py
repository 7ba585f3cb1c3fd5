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
from transformers import AutoModelForTokenClassification

from architectures import CONFIGS
from priml.errors import ModelError
from priml.models.load import (
    check_positions,
    check_tokens_fit,
    checkpoint_activations,
    load_critic,
    load_model,
    load_tokenizer,
)
from priml.models.tiny import character_tokenizer, tiny_model

CPU = torch.device("cpu")
LOADERS: list[Callable[[str], Any]] = [lambda source: load_model(source, device=CPU), load_tokenizer]


@pytest.fixture
def folder(save_tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return save_tiny_model("llama", tmp_path / "made")


def test_a_model_comes_in_float32_in_eval_mode_whatever_it_was_saved_in(folder: Path) -> None:
    weights = {name: w.bfloat16() for name, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    module = load_model(str(folder), device=CPU)

    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_no_dropout_is_left(save_tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    module = load_model(str(save_tiny_model("opt", tmp_path)), device=CPU).train()
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
    with pytest.raises(ModelError, match=r"no config.json in it\); give a Hugging Face folder or a Hub id"):
        load(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"did you mean .*model\?"):
        load(str(tmp_path))


@pytest.mark.parametrize("load", LOADERS)
def test_an_empty_name(load: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match="found an empty model name; give a Hugging Face folder or a Hub id"):
        load("")


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


def test_a_token_beyond_the_embeddings_is_refused_when_it_occurs() -> None:
    tokenizer: Any = character_tokenizer()
    module = tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|image|>"])
    check_tokens_fit("made", module, tokenizer, [[0, rows - 1], []])
    check_tokens_fit("made", module, tokenizer, [])
    with pytest.raises(
        ModelError, match=rf"made: the tokenizer writes '<\|image\|>' as token {rows}, .* 0 to {rows - 1}"
    ):
        check_tokens_fit("made", module, tokenizer, [[0], [rows, 1]])


def test_an_eos_beyond_the_embeddings_is_refused() -> None:
    tokenizer: Any = character_tokenizer()
    module = tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' .* use the tokenizer that belongs to the weights"):
        check_tokens_fit("made", module, tokenizer, [[0]])


@pytest.mark.filterwarnings("error")
def test_activations_are_checkpointed_by_the_name_that_this_transformers_wants() -> None:
    module: Any = tiny_model(character_tokenizer(), width=16, layers=2, heads=2, seed=0)
    checkpoint_activations(module)
    assert all(layer.gradient_checkpointing for layer in module.model.layers)


@pytest.mark.filterwarnings("error")
def test_an_older_transformers_knows_the_older_name() -> None:
    asked: list[dict[str, Any]] = []

    class Older(nn.Module):
        def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
            asked.append(options)

    checkpoint_activations(Older())
    assert asked == [{"use_reentrant": False}]


def test_an_architecture_that_cannot_checkpoint_is_refused() -> None:
    module: Any = tiny_model(character_tokenizer(), width=16, layers=1, heads=2, seed=0)
    module.supports_gradient_checkpointing = False
    with pytest.raises(
        ModelError, match=r"policy\.gradient_checkpointing: Qwen2.* does not support .*; set it to false"
    ):
        checkpoint_activations(module)


# Critics

CRITICS = sorted(CONFIGS)


@pytest.mark.parametrize("name", CRITICS)
def test_a_critic_has_the_models_weights_and_a_head_of_zeros(
    name: str, save_tiny_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_model(name, tmp_path)
    critic: Any = load_critic(str(folder), device=CPU)
    policy: Any = load_model(str(folder), device=CPU)
    head = critic.get_output_embeddings()
    assert head.out_features == 1
    assert not head(critic.base_model(input_ids=torch.arange(6)[None]).last_hidden_state).any()
    theirs = dict(policy.base_model.named_parameters())
    assert theirs.keys() == dict(critic.base_model.named_parameters()).keys()
    assert all(torch.equal(p, theirs[name]) for name, p in critic.base_model.named_parameters())
    assert not critic.training
    assert "MISSING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", CRITICS)
def test_a_saved_critic_comes_back_with_its_head(
    name: str, save_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    critic: Any = load_critic(str(save_tiny_model(name, tmp_path / "made")), device=CPU)
    with torch.no_grad():
        for parameter in critic.get_output_embeddings().parameters():
            parameter.fill_(0.5)
    critic.save_pretrained(tmp_path / "critic")
    again: Any = load_critic(str(tmp_path / "critic"), device=CPU)
    assert described(again) == described(critic)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), critic.parameters(), strict=True))


def test_a_critic_of_priml_0_1_comes_back_with_its_head(folder: Path, tmp_path: Path) -> None:
    classifier: Any = AutoModelForTokenClassification.from_pretrained(folder, num_labels=1)
    classifier.save_pretrained(tmp_path / "critic")
    critic: Any = load_critic(str(tmp_path / "critic"), device=CPU)
    head = critic.get_output_embeddings()
    assert torch.equal(head.weight, classifier.score.weight)
    assert torch.equal(head.bias, classifier.score.bias)


def test_a_critic_with_weights_missing_elsewhere_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights of LlamaForCausalLM are missing, .*model.norm.weight"):
        load_critic(str(folder), device=CPU)


def described(module: Any) -> dict[str, Any]:
    """Names, shapes and types of all tensors, and which are tied."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    numbers: dict[int, int] = {}
    tied = {name: numbers.setdefault(id(p), len(numbers)) for name, p in parameters.items()}
    tensors = {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
    return {name: (tensor.shape, tensor.dtype, tied.get(name)) for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma2", "gpt2", "bloom", "opt"])
@pytest.mark.parametrize("load", [load_model, load_critic])
def test_on_the_meta_device_the_architecture_is_that_of_the_loaded_model(
    name: str, load: Callable[..., Any], save_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_tiny_model(name, tmp_path)
    whole = load(str(folder), device=CPU)
    (folder / "model.safetensors").unlink()
    empty = load(str(folder), device=torch.device("meta"))
    assert described(empty) == described(whole)
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert not empty.training
    left = [value for module in empty.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert left == [], "every tensor is a parameter or a buffer, and so it is sent"


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_sequences_beyond_a_table_of_positions_are_refused(model_folder, name):
    """huggingface/trl#1867: on a GPU this is an assertion in the middle of a run."""
    module = load_model(str(model_folder(name)), device=CPU)
    check_positions("policy.model: m", module, 64, shorten="x")
    module(torch.zeros(1, 64, dtype=torch.long))
    with pytest.raises(ModelError, match=r"policy.model: m: .* 65 tokens .* the model has 64 positions; lower x, or"):
        check_positions("policy.model: m", module, 65, shorten="x")
    with pytest.raises(IndexError):
        module(torch.zeros(1, 65, dtype=torch.long))


def test_rotary_positions_go_on_with_a_warning(model_folder, said):
    check_positions("m", load_model(str(model_folder("qwen2")), device=torch.device("meta")), 65, shorten="x")
    assert len(said) == 1
    assert "65 tokens" in said[0]
    check_positions("m", load_model(str(model_folder("bloom")), device=torch.device("meta")), 10**6, shorten="x")
    assert len(said) == 1


def test_frequencies_that_change_with_every_token_are_refused_before_the_run(model_folder):
    module = load_model(str(model_folder("llama dynamic")), device=torch.device("meta"))
    check_positions("m", module, 64, shorten="x")
    with pytest.raises(ModelError, match=r"its RoPE is `dynamic`.* may have 65"):
        check_positions("m", module, 65, shorten="x")


# --- what is said of folders that cannot be used ---


def test_weights_that_are_no_numbers_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights model\.norm\.weight hold NaN or infinite numbers"):
        load_model(str(folder), device=CPU)


def test_pickled_weights_are_not_read_and_the_way_out_is_said(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights alone, .* save it again, as safetensors"):
        load_model(str(folder), device=CPU)


def test_quantised_weights_are_called_so(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(ModelError, match="quantised and cannot be trained: take the model that they were made from"):
        load_model(str(folder), device=CPU)


def test_code_that_ships_with_a_model_is_named_with_its_setting(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "mine.py").write_text("class C: pass\n")
    with pytest.raises(ModelError, match=r"without the Python code that ships with it; .* trust_remote_code: true"):
        load_model(str(folder), device=CPU)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ('{"weight_map": {"w": "pytorch_model.bin"}}', "found the file 'pytorch_model.bin' in it"),
        ('{"weight_map": {"w": "../model.safetensors"}}', "found the file '../model.safetensors' in it"),
        ('{"weight_map": 3}', "found no index of weights"),
        ("[", "found no index of weights"),
    ],
)
def test_an_index_that_names_anything_but_safetensors_of_the_folder_is_refused(tmp_path, index, said):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"safetensors\.index") as error:
        load_model(str(tmp_path), device=torch.device("cpu"))
    assert said in str(error.value)


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: _edit_config(f, num_hidden_layers=1), r"weights model.layers.1.\S+ in its files, need none beyond"),
        (lambda f: _edit_config(f, num_hidden_layers=9), r"weights of \w+ are missing"),
        (lambda f: (f / "config.json").write_text("[]"), "no causal language model could be loaded from this"),
        (lambda f: _edit_weights(f, lambda w: {n: (t * 99).to(torch.int8) for n, t in w.items()}), "as I8, need float"),
        (lambda f: _edit_weights(f, lambda w: {n: t.to(torch.float8_e4m3fn) for n, t in w.items()}), "as F8_E4M3"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_named(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=said):
        load_model(str(folder), device=CPU)


def test_weights_without_a_place_in_the_model_are_named_and_left_out(folder: Path, said: list[str]) -> None:
    _edit_weights(folder, lambda weights: {**weights, "value_head.weight": torch.zeros(3)})
    load_model(str(folder), device=CPU)
    assert [line for line in said if "1 weights of its files have no place in the model, the first value_head" in line]


def test_a_folder_without_the_vocabulary_of_its_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="its vocabulary is missing; copy the tokenizer's files into it"):
        load_tokenizer(str(tmp_path))
