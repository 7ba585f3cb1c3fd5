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
from transformers import AutoConfig

from priml.errors import ModelError
from priml.models.load import load_model
from priml.planner.facts import Adapters, ModelFacts, Shape
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


def at_full_depth(name: str, shape: Shape) -> ModelFacts:
    """The facts of a published model, extrapolated from those with 2 and 4 layers."""
    two, four, layers = make_facts(name, shape, 2), make_facts(name, shape, 4), QWEN[name][0][1]

    def extended(low: float, high: float) -> int:
        return round(low + (high - low) * (layers - 2) / 2)

    grown = {n: extended(getattr(two, n), getattr(four, n)) for n in ("parameters", "body", "cache", "cache_bytes")}
    footprint = map(extended, astuple(two.footprint), astuple(four.footprint))
    return replace(two, layers=layers, **grown, footprint=type(two.footprint)(*footprint))


@pytest.mark.parametrize("name", QWEN)
def test_published_models_have_the_parameters_that_are_published(name: str):
    check_counts(name, at_full_depth(name, SMALL))


def check_counts(name: str, facts: ModelFacts) -> None:
    _, layers, _, kv_heads, _, vocabulary, tied = QWEN[name][0]
    assert facts.parameters == QWEN[name][1]
    assert facts.tied is tied
    assert facts.body + facts.head + (0 if tied else facts.embedding) == facts.parameters
    assert facts.vocabulary == vocabulary
    assert facts.cache == 2 * layers * kv_heads * (64 if name == "0.5b" else 128)
    assert facts.largest_block * layers == pytest.approx(facts.body, rel=1e-3)


LONG = Shape(1, 1024, 512, "bf16", checkpointing=False)


@pytest.mark.parametrize("shape", [SMALL, LONG], ids=["small", "long"])
def test_counts_and_memory_are_linear_in_the_layers(shape: Shape):
    two, four, six = (make_facts("0.5b", shape, layers) for layers in (2, 4, 6))
    for name in ("parameters", "body", "cache", "cache_bytes"):
        assert getattr(six, name) - getattr(four, name) == getattr(four, name) - getattr(two, name) > 0
    for low, middle, high in zip(*(astuple(f.footprint) for f in (two, four, six)), strict=True):
        assert high - middle == pytest.approx(middle - low, rel=0.01, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", QWEN)
def test_at_full_depth_a_published_model_is_what_few_layers_say(name: str):
    whole, extrapolated = make_facts(name, LONG), at_full_depth(name, LONG)
    check_counts(name, whole)
    assert astuple(whole.footprint) == pytest.approx(astuple(extrapolated.footprint), rel=0.01)
    assert replace(whole, footprint=extrapolated.footprint) == extrapolated


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
    """Thirty billion parameters in fp32 would be 122 GiB, and their activations many times that."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = make_facts("32b", Shape(4, 4096, 3072, "bf16", checkpointing=False), layers)
    assert facts.footprint.training > 300 * 2**30 * layers / 64
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


def test_activations_grow_with_tokens_and_shrink_with_checkpointing_and_bf16():
    config = qwen("0.5b", 6)
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
        model_facts("t5", AutoConfig.for_model("t5"), SMALL)


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import
    with pytest.raises(ModelError, match=r"nobody/nothing: .* could not be fetched .* --model-config FILE"):
        read_config("nobody/nothing")


# --- adapters ----------------------------------------------------------------------------------------------------


LAYERS = 3


def adapted(rank: int, *targets: str) -> ModelFacts:
    return make_facts("0.5b", replace(SMALL, adapters=Adapters(rank, targets or None)), LAYERS)


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
