"""Counts are those of the real module, and the memory of a traced pass is that of a real one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import CONFIGS
from priml.config.models import Lora
from priml.errors import ModelError
from priml.models.load import load_model
from priml.planner import trace
from priml.planner.facts import ModelFacts, Shape
from priml.planner.trace import model_facts, read_config

CPU = torch.device("cpu")
SMALL = Shape(rows=2, length=24, predicted=16, precision="fp32", checkpointing=False)
# From the config.json of each published model, with the parameters that its card states.
QWEN = {
    "0.5b": ((896, 24, 14, 2, 4864, 151936, True), 494_032_768),
    "1.5b": ((1536, 28, 12, 2, 8960, 151936, True), 1_543_714_304),
    "7b": ((3584, 28, 28, 4, 18944, 152064, False), 7_615_616_512),
    "32b": ((5120, 64, 40, 8, 27648, 152064, False), 32_763_876_352),
}


def qwen(name: str, layers: int | None = None) -> Any:
    """The published shape, with as many layers as published or with `layers`."""
    hidden, published, heads, kv_heads, intermediate, vocabulary, tied = QWEN[name][0]
    return AutoConfig.for_model(
        "qwen2",
        hidden_size=hidden,
        num_hidden_layers=layers or published,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


@cache
def make_facts(name: str, shape: Shape, layers: int | None = None) -> ModelFacts:
    return model_facts(name, qwen(name, layers), shape)


@pytest.mark.parametrize("name", ["0.5b", *(pytest.param(n, marks=pytest.mark.slow) for n in ("1.5b", "7b", "32b"))])
def test_published_models_have_the_parameters_that_are_published(name: str):
    check_counts(name, make_facts(name, SMALL))


def check_counts(name: str, facts: ModelFacts) -> None:
    _, layers, _, kv_heads, _, vocabulary, tied = QWEN[name][0]
    assert facts.parameters == QWEN[name][1]
    assert facts.tied is tied
    assert facts.body + facts.head + (0 if tied else facts.embedding) == facts.parameters
    assert facts.vocabulary == vocabulary
    assert facts.cache == 2 * layers * kv_heads * (64 if name == "0.5b" else 128)
    assert facts.largest_block * layers == pytest.approx(facts.body, rel=1e-3)


LONG = Shape(1, 1024, 512, "bf16", checkpointing=False)


def traced_whole(name: str, config: Any, shape: Shape) -> ModelFacts:
    """The facts with every layer in the passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_repeats", lambda *_: False)
        return model_facts(name, config, shape)


def check_extrapolation(config: Any, shape: Shape) -> None:
    whole, extrapolated = traced_whole("any", config, shape), model_facts("any", config, shape)
    assert astuple(whole.footprint) == pytest.approx(astuple(extrapolated.footprint), rel=0.01)
    assert replace(whole, footprint=extrapolated.footprint) == extrapolated


@pytest.mark.parametrize("shape", [SMALL, pytest.param(LONG, marks=pytest.mark.slow)], ids=["small", "long"])
def test_a_few_layers_say_what_six_need(shape: Shape):
    check_extrapolation(qwen("0.5b", 6), shape)


SIX: dict[str, Any] = CONFIGS["gemma2"] | {"num_hidden_layers": 6, "sliding_window": 64}


@pytest.mark.slow
def test_two_pairs_of_layers_that_alternate_say_what_three_need():
    check_extrapolation(AutoConfig.for_model("gemma2", **SIX), SMALL)


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("types", "depths"),
    [([SLIDING, FULL] * 3, {2, 4}), ([FULL] * 5 + [SLIDING], {6})],
    ids=["layers that alternate", "a last layer that differs"],
)
def test_only_layers_that_repeat_are_extrapolated(types: list[str], depths: set[int], monkeypatch: pytest.MonkeyPatch):
    traced: set[int] = set()
    monkeypatch.setattr(trace, "_trace", lambda module, *_, **__: traced.add(len(module.base_model.layers)) or 1)
    model_facts("six layers", AutoConfig.for_model("gemma2", **SIX | {"layer_types": types}), SMALL)
    assert traced == depths


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "0.5b" else pytest.mark.exhaustive) for n in QWEN]
)
def test_at_full_depth_a_published_model_is_what_few_layers_say(name: str):
    check_extrapolation(qwen(name), LONG)


@pytest.mark.parametrize(
    "name", ["qwen2", "qwen3", "llama", "mistral", "gemma2", "cohere", "phi", "gpt2", "bloom", "opt"]
)
def test_counts_of_many_architectures_are_those_of_the_loaded_model(name: str, model_folder: Callable[[str], Path]):
    facts = model_facts(name, read_config(str(model_folder(name))), SMALL)
    module: Any = load_model(str(model_folder(name)), device=CPU)
    assert facts.parameters == sum(p.numel() for p in module.parameters())
    assert facts.tied is (module.get_output_embeddings().weight is module.get_input_embeddings().weight)
    assert 0 < facts.largest_block < facts.parameters
    assert facts.footprint.training > facts.footprint.scoring > 0


@pytest.mark.parametrize("layers", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_tracing_makes_no_tensors(layers: int):
    """Thirty billion parameters in fp32 would be 122 GiB, and so would their activations be."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = make_facts("32b", Shape(1, 4096, 1024, "bf16", checkpointing=False), layers)
    assert facts.footprint.training > 75 * 2**30 * layers / 64
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_what_is_saved_for_the_backward_pass_is_what_a_real_model_saves(model_folder: Callable[[str], Path]):
    """The trace counts at its worst moment at least what autograd keeps, weights apart."""
    module: Any = load_model(str(model_folder("llama")), device=CPU)
    weights = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    shape = Shape(rows=4, length=48, predicted=40, precision="fp32", checkpointing=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = module.base_model(input_ids=torch.zeros(4, 48, dtype=torch.long), use_cache=False).last_hidden_state
    traced = model_facts("llama", module.config, shape).footprint.training
    assert hidden.requires_grad
    assert sum(saved.values()) < traced < 1.5 * sum(saved.values())


@pytest.mark.slow
def test_activations_grow_with_tokens_and_shrink_with_checkpointing_and_bf16():
    config = qwen("0.5b", 4)
    config.update({"vocab_size": 1000})  # with few layers a whole head would be the worst moment of the pass

    @cache
    def training(rows: int = 1, precision: str = "fp32", *, checkpointing: bool = False) -> int:
        return model_facts("narrow head", config, Shape(rows, 1024, 512, precision, checkpointing)).footprint.training

    assert training(rows=4) > 3 * training()
    assert training(checkpointing=True) < training() / 2
    assert training(precision="bf16") < training(precision="autocast") < training()


def test_a_config_file_stands_for_a_model(tmp_path: Path):
    path = tmp_path / "shape.json"
    path.write_text(json.dumps({"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 3}))
    assert read_config(str(path)).num_hidden_layers == 3


@pytest.mark.parametrize("source", ["./nowhere", "runs/sft/model"])
def test_a_folder_that_is_not_there_is_answered_with_what_to_do(source: str):
    with pytest.raises(ModelError, match=rf"{source}: no such model folder, .*--model-config FILE"):
        read_config(source)


@pytest.mark.parametrize("content", ["{", '{"model_type": "no such thing"}', "[]"])
def test_a_config_that_says_nothing(content: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"no usable config\.json"):
        read_config(str(tmp_path))


def test_a_config_of_no_causal_model():
    with pytest.raises(ModelError, match=r"t5: this architecture cannot be planned: .* use a causal language model"):
        model_facts("t5", AutoConfig.for_model("t5", num_layers=1), SMALL)


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import
    with pytest.raises(ModelError, match=r"nobody/nothing: .* could not be fetched .* --model-config FILE"):
        read_config("nobody/nothing")


# --- adapters ----------------------------------------------------------------------------------------------------


LAYERS = 3


def adapted(rank: int, *targets: str) -> ModelFacts:
    return make_facts("0.5b", replace(SMALL, adapters=Lora(rank=rank, targets=targets or "all-linear")), LAYERS)


def test_an_adapter_has_its_rank_times_what_goes_in_and_out():
    hidden, keys, intermediate, layers = 896, 128, 4864, LAYERS
    attention = 2 * (hidden + hidden) + 2 * (hidden + keys)  # q and o, k and v
    assert adapted(8).adapters == 8 * layers * (attention + 3 * (hidden + intermediate))
    assert adapted(16, "q_proj", "v_proj").adapters == 16 * layers * (hidden + hidden + hidden + keys)


def test_adapters_change_no_other_count_and_need_less_to_learn():
    whole, light = make_facts("0.5b", SMALL, LAYERS), adapted(8)
    names = ("parameters", "body", "head", "embedding", "largest_block", "largest_matrix", "cache")
    assert [getattr(whole, name) for name in names] == [getattr(light, name) for name in names]
    assert whole.adapters == 0
    assert light.footprint.training < whole.footprint.training


def test_adapters_on_layers_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(ModelError, match=r"lora.targets: found query, need names of its linear layers: .*q_proj"):
        adapted(8, "query")


def test_as_many_adapters_are_counted_as_peft_makes():
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(qwen("0.5b", LAYERS))
        config = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
        peft.inject_adapter_in_model(config, module)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == adapted(8).adapters


# --- experts, states, positions ---


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "phimoe"])
def test_of_experts_those_are_active_that_a_token_goes_to(name: str, precision: str):
    """unslothai/unsloth-zoo#647 is where such models went wrong unseen: here torch's own rule for their product did."""
    config = AutoConfig.for_model(name, **CONFIGS[name])
    facts = model_facts(name, config, replace(SMALL, precision=precision))
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    experts = sum(
        p.numel() for n, p in module.named_parameters() if "experts" in n and p.dim() == 3 and "bias" not in n
    )
    assert experts > 0
    assert facts.body - facts.active == experts // 2  # two of four are chosen
    assert facts.parameters == sum(p.numel() for p in module.parameters())
    assert facts.footprint.training > facts.footprint.scoring > 0


def test_states_of_a_hybrid_model_are_counted_once_a_row():
    layers = ["linear_attention", "full_attention"]
    config = AutoConfig.for_model("qwen3_next", **CONFIGS["qwen3_moe"], layer_types=layers)
    facts = model_facts("qwen3_next", config, SMALL)
    assert facts.cache == 2 * config.num_key_value_heads * config.head_dim
    values = config.linear_num_value_heads * config.linear_value_head_dim
    assert facts.state_bytes > 4 * values * config.linear_key_head_dim


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "mpt"])
def test_a_model_without_that_many_positions_is_traced_as_far_as_they_go(name: str):
    small = {"gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}}
    small |= {"mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}, "gpt2": CONFIGS["gpt2"]}
    limit = {} if name != "gpt_neo" else {"max_position_embeddings": 64}
    config = AutoConfig.for_model(name, **({"vocab_size": 29} | small[name] | limit))
    facts = model_facts(name, config, replace(SMALL, length=100, predicted=90))
    assert (facts.positions, facts.is_bound) == (64, True)
