"""Adapters begin as nothing, leave as plain weights or in peft's format, and never touch the weights beside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from priml.batch import Batch
from priml.errors import ConfigError, ModelError
from priml.models.checkpoint import load_weights, save_model, stage_weights, trained_state, weights_digest
from priml.models.forward import LanguageModel
from priml.models.load import checkpoint_activations, load_model, load_tokenizer
from priml.models.lora import add_adapters, frozen_twin, has_adapters, merged_parameters, save_adapter
from priml.models.tiny import character_tokenizer
from priml.planner.trace import read_config

CPU = torch.device("cpu")
TOKENS = torch.tensor([[3, 7, 1, 9, 4, 4]])
MIXTURES = ["qwen3_moe", "mixtral", "phimoe", "gpt_oss", "deepseek_v3"]
ARCHITECTURES = ["qwen2", "llama", "gemma2", "phi", "gpt2", "bloom", "opt", *MIXTURES]
ABSOLUTE = 1e-5
"""Of log-probs: W x + B A x is summed in another order than (W + B A) x."""


def adapted(folder: Path, *, moved: bool = True, **changes: Any) -> Any:
    """A module with adapters; `moved`: as if they had been trained."""
    module = load_model(str(folder), device=CPU)
    given = {"rank": 4, "alpha": 8.0, "targets": "all-linear", "seed": 0} | changes
    add_adapters(module, key="policy.lora", base=str(folder), **given)
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trained(module).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def logprobs(module: Any) -> Tensor:
    return module(input_ids=TOKENS).logits.log_softmax(-1)


# --- in the module -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_first_the_model_is_exactly_the_initial_one(model_folder: Callable[[str], Path], batch: Batch, name: str):
    place = {"device": CPU, "precision": "fp32", "micro_batch_tokens": 40}
    plain = LanguageModel(load_model(str(model_folder(name)), device=CPU), **place)
    module = adapted(model_folder(name), moved=False)
    assert torch.equal(plain.scores(batch).logprobs_BT, LanguageModel(module, **place).scores(batch).logprobs_BT)
    assert type(module) is type(plain.module)


def test_adapters_alone_are_trained_in_float32(model_folder: Callable[[str], Path]):
    module = adapted(model_folder("qwen2"), moved=False)
    assert len(trained(module)) == 2 * 7 * 2  # A and B of seven layers in each of two blocks
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained(module).items())


def test_adapters_are_a_function_of_the_seed_and_draw_from_nobody_elses_numbers(model_folder: Callable[[str], Path]):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = adapted(model_folder("qwen2"), moved=False)
    assert torch.rand(1) == expected
    assert weights_digest(adapted(model_folder("qwen2"), moved=False)) == weights_digest(one)
    assert weights_digest(adapted(model_folder("qwen2"), moved=False, seed=1)) != weights_digest(one)


def test_recomputed_activations_give_the_same_gradients(model_folder: Callable[[str], Path], batch: Batch):
    found = []
    for recomputes in (False, True):
        module = adapted(model_folder("qwen2"))
        if recomputes:
            checkpoint_activations(module)
        model = LanguageModel(module, device=CPU, precision="fp32", micro_batch_tokens=40)
        with model.training():
            for micro in model.micro_batches(batch, range(len(batch))):
                model.score(micro)[0].sum().backward()
        found.append([parameter.grad for parameter in trained(module).values()])
    for plain, again in zip(*found, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(again, plain)


def test_chosen_layers_alone_have_adapters(model_folder: Callable[[str], Path]):
    module = adapted(model_folder("qwen2"), targets=["q_proj", "mlp.up_proj"])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained(module)} == {"q_proj", "up_proj"}


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_routers_stay_frozen(model_folder: Callable[[str], Path], name: str):
    names = {name.split(".lora_")[0] for name in trained(adapted(model_folder(name)))}
    assert names
    assert all(".self_attn." in name for name in names), "as these architectures call their attention"
    named = adapted(model_folder(name), targets=["o_proj"])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained(named)} == {"o_proj"}


@pytest.mark.parametrize("name", ["mamba", "falcon_h1", "zamba2"])
def test_of_a_state_space_mixer_only_the_projection_of_its_input_learns(model_folder: Callable[[str], Path], name: str):
    mixers = {name.split(".lora_")[0] for name in trained(adapted(model_folder(name)))}
    of_mixers = {name.rpartition(".")[2] for name in mixers if ".mixer." in name or ".mamba." in name}
    assert of_mixers == {"in_proj"}
    with pytest.raises(ModelError, match="found out_proj, whose weights a fused kernel reads"):
        adapted(model_folder(name), targets=["out_proj"])


def test_a_name_that_peft_takes_for_experts_is_refused(model_folder: Callable[[str], Path]):
    with pytest.raises(ModelError, match=r"found up_proj, which peft takes for experts, and those stay frozen"):
        adapted(model_folder("deepseek_v3"), targets=["up_proj"])


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("q_prj", "found q_prj, which no layer is called; need linear layers but the head, of: down_proj, gate_proj, "),
        ("lm_head", "found lm_head, which is something else"),
        ("embed_tokens", "found embed_tokens, which is something else"),
    ],
)
def test_targets_that_are_no_linear_layers_are_refused(model_folder: Callable[[str], Path], target: str, found: str):
    with pytest.raises(ModelError, match=f"policy.lora.targets: {found}"):
        adapted(model_folder("qwen2"), targets=["q_proj", target])


def test_a_twin_has_the_same_weights_and_its_own_adapters(model_folder: Callable[[str], Path]):
    module = load_model(str(model_folder("qwen2")), device=CPU)
    twin = frozen_twin(module)
    pairs = list(zip(module.parameters(), twin.parameters(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    add_adapters(twin, key="prm.lora", base="", rank=2, alpha=2.0, targets="all-linear", seed=0)
    assert not has_adapters(module)
    assert len(list(module.parameters())) == len(pairs)


def test_without_peft_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, model_folder: Callable[[str], Path]):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"need the package peft, .* type: pip install 'priml\[lora\]'"):
        adapted(model_folder("qwen2"))


# --- out of the module -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merged_weights_make_the_plain_model_that_says_the_same(model_folder: Callable[[str], Path], name: str):
    module, plain = adapted(model_folder(name)), load_model(str(model_folder(name)), device=CPU)
    before = weights_digest(module)
    initial = logprobs(plain)
    weights = dict(merged_parameters(module))
    assert {n: p.shape for n, p in weights.items()} == {n: p.shape for n, p in plain.named_parameters()}
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(logprobs(plain), logprobs(module), atol=ABSOLUTE, rtol=0)
    assert (logprobs(plain) - initial).abs().max() > 100 * ABSOLUTE, "the adapters do something"
    assert weights_digest(module) == before


def test_a_module_without_adapters_is_handed_over_as_it_is(model_folder: Callable[[str], Path]):
    module = load_model(str(model_folder("qwen2")), device=CPU)
    for (name, given), (own_name, own) in zip(merged_parameters(module), module.named_parameters(), strict=True):
        assert name == own_name
        assert given.data_ptr() == own.data_ptr()
        assert not given.requires_grad


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_export_loads_as_any_other_and_leaves_the_live_module_alone(
    model_folder: Callable[[str], Path], tmp_path: Path, name: str
):
    module = adapted(model_folder(name))
    before = weights_digest(module)
    save_model(module, character_tokenizer(), tmp_path)
    assert weights_digest(module) == before
    names = load_file(tmp_path / "model.safetensors").keys()
    assert names == load_file(model_folder(name) / "model.safetensors").keys()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not has_adapters(plain)
    torch.testing.assert_close(logprobs(plain.eval()), logprobs(module), atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "qwen3_moe", "deepseek_v3"])
def test_an_adapter_is_exported_in_pefts_own_format(model_folder: Callable[[str], Path], tmp_path: Path, name: str):
    module = adapted(model_folder(name))
    save_adapter(module, character_tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids == character_tokenizer()("ab").input_ids
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert config.base_model_name_or_path == str(model_folder(name))
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert torch.equal(logprobs(loaded), logprobs(module))


def test_an_adapter_folder_is_loaded_as_the_merged_model_of_the_same_module(
    model_folder: Callable[[str], Path], tmp_path: Path
):
    module = adapted(model_folder("qwen2"))
    save_adapter(module, character_tokenizer(), tmp_path / "adapter")
    save_model(module, character_tokenizer(), tmp_path / "merged")
    expected, found = (load_model(str(tmp_path / name), device=CPU) for name in ("merged", "adapter"))
    assert weights_digest(found) == weights_digest(expected)
    assert (type(found), has_adapters(found), found.training) == (type(expected), False, False)
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert load_tokenizer(str(tmp_path / "adapter")).eos_token_id == character_tokenizer().eos_token_id


def test_an_adapter_is_planned_as_the_model_it_belongs_to(model_folder: Callable[[str], Path], tmp_path: Path):
    save_adapter(adapted(model_folder("qwen2")), character_tokenizer(), tmp_path)
    assert read_config(str(tmp_path)).to_dict() == read_config(str(model_folder("qwen2"))).to_dict()


def test_a_run_folder_is_answered_with_the_adapter_in_it(model_folder: Callable[[str], Path], tmp_path: Path):
    save_adapter(adapted(model_folder("qwen2")), character_tokenizer(), tmp_path / "model")
    with pytest.raises(ModelError, match=r"did you mean .*model\?"):
        load_model(str(tmp_path), device=CPU)


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[min(weights)]
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("adapter_model.safetensors"), "no adapter_model.safetensors in it, and only safetensors are read"),
        (rewrite(base_model_name_or_path=None), "does not name the model that the adapter belongs to"),
        (rewrite(base_model_name_or_path="./gone"), r"holds an adapter of ./gone. ./gone: no such model folder"),
        (rewrite(r=8), "cannot be added to Qwen2ForCausalLM"),
        (drop_a_weight, "cannot be added to Qwen2ForCausalLM: Found missing adapter keys"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "not peft's note on an adapter"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused(
    model_folder: Callable[[str], Path], tmp_path: Path, damage: Callable[[Path], None], message: str
):
    save_adapter(adapted(model_folder("qwen2")), character_tokenizer(), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path), device=CPU)


def test_adapters_of_another_kind_are_refused(model_folder: Callable[[str], Path], tmp_path: Path):
    module = AutoModelForCausalLM.from_pretrained(model_folder("qwen2"))
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(module, config).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="found an adapter of type IA3, need LORA"):
        load_model(str(tmp_path), device=CPU)


# --- in a checkpoint ---------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_adapters_alone_and_restores_them_exactly(
    model_folder: Callable[[str], Path], tmp_path: Path
):
    module = adapted(model_folder("qwen2"))
    path = tmp_path / "weights.safetensors"
    for write in stage_weights(module, path):
        write()
    assert load_file(path).keys() == trained(module).keys()
    again = adapted(model_folder("qwen2"), moved=False)
    load_weights(again, path)
    assert weights_digest(again) == weights_digest(module)
    with pytest.raises(ModelError, match="these weights belong to another architecture"):
        load_weights(adapted(model_folder("qwen2"), rank=2), path)


def test_what_travels_to_samplers_is_what_is_trained(model_folder: Callable[[str], Path]):
    module, plain = adapted(model_folder("qwen2")), load_model(str(model_folder("qwen2")), device=CPU)
    assert trained_state(module).keys() == trained(module).keys()
    assert trained_state(plain).keys() == dict(plain.named_parameters()).keys()
