"""Rows laid end to end give the scores and gradients of rows computed apart, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import CONFIGS, VOCABULARY
from priml.batch import Batch, Row, collate
from priml.errors import ModelError
from priml.models.forward import LanguageModel, Packing, ValueModel
from priml.models.load import checkpoint_activations, load_critic, load_model
from priml.models.lora import add_adapters
from priml.models.packing import packing_obstacle, shortest_window

CPU = torch.device("cpu")
MakeFolder = Callable[[str], Path]
PACKED = ["qwen2", "qwen3", "llama", "mistral", "cohere", "granite", "phi", "gpt2", "opt"]
SMALL = CONFIGS["qwen2"]
MORE: dict[str, dict[str, Any]] = {
    "gemma3_text": SMALL | {"sliding_window": 3},
    "olmo3": SMALL | {"sliding_window": 3},
    "phi3": SMALL | {"sliding_window": 3},
    "glm4": SMALL,
    "gpt_neox": {key: value for key, value in SMALL.items() if key != "head_dim"},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": SMALL | {"num_local_experts": 4},
    "qwen3_moe": SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
}
"""torch multiplies them in single precision at most."""
MAMBA: dict[str, Any] = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": (CONFIGS["bloom"], "its attention is 'eager'"),
    "gemma2": (CONFIGS["gemma2"], "its attention is 'eager'"),  # caps its scores
    "gpt_oss": (SMALL | {"num_local_experts": 4}, "its attention is 'eager'"),  # has sinks
    "mamba": ({"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}, "its attention is 'eager'"),
    "lfm2": (SMALL | {"layer_types": ["conv", "full_attention"]}, "depends on the rows packed before it"),
    "jamba": (SMALL | {"use_mamba_kernels": False}, "depends on the rows packed before it"),
    "falcon_h1": (SMALL | MAMBA | {"mamba_d_ssm": 16, "mamba_n_heads": 2}, "depends on the rows packed before it"),
    "granitemoehybrid": (
        SMALL | MAMBA | {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "num_local_experts": 0},
        "depends on the rows packed before it",
    ),
    "qwen3_next": (
        SMALL
        | {"layer_types": ["linear_attention", "full_attention"], "num_experts": 2, "num_experts_per_tok": 1}
        | {f"linear_{what}": 2 for what in ("num_value_heads", "num_key_heads")}
        | {f"linear_{what}": 8 for what in ("key_head_dim", "value_head_dim")},
        "depends on the rows packed before it",
    ),
    "recurrent_gemma": (SMALL | {"num_hidden_layers": 3}, "depends on the rows packed before it"),
    "stablelm": (SMALL, "depends on the rows packed before it"),  # passes no arguments on to its attention
}


def language_model(module: Any, packing: Packing, budget: int = 10_000) -> LanguageModel:
    return LanguageModel(module, device=CPU, precision="fp32", micro_batch_tokens=budget, packing=packing)


def gradients(model: LanguageModel, batch: Batch) -> dict[str, torch.Tensor]:
    """Of a sum in which each log-prob and each entropy has a weight of its own."""
    weights_BT = torch.linspace(-1, 2, batch.mask_BT.numel()).view(batch.mask_BT.shape)
    with model.training():
        for micro in model.micro_batches(batch, range(len(batch))):
            logprobs_bt, entropies_bt = model.score(micro, temperature=0.7)
            ((logprobs_bt - 0.5 * entropies_bt) * micro.take(weights_BT)).sum().backward()
    found = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    model.module.zero_grad()
    return found


def random_module(name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **config)).eval()


def noisy(name: str) -> Any:
    module = random_module(name, {**MORE, **EXPERTS}[name])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def grouped() -> Batch:
    """Three prompts, two of them with several responses, one of which has an observation between two turns."""
    ids = iter(torch.randint(VOCABULARY, (200,), generator=torch.Generator().manual_seed(1)).tolist())
    prompts = [list(islice(ids, count)) for count in (6, 1, 3)]
    rows = []
    for group, length in [(0, 4), (1, 2), (0, 1), (2, 5), (0, 4), (2, 2), (0, 9)]:
        is_trained = np.array([True] * 2 + [False] * 3 + [True] * 4) if length == 9 else None
        response = list(islice(ids, length))
        rows.append(Row(prompts[group], response, outcome=0.0, group=group, step_ends=(), is_trained=is_trained))
    return collate(rows, step=0)


@pytest.fixture(scope="module")
def rows(make_batch: Callable[..., Batch]) -> Batch:
    """Some are equally long."""
    return make_batch(prompts=[3, 7, 1, 5, 2, 4, 6], responses=[4, 2, 9, 1, 6, 5, 3])


@pytest.mark.parametrize("budget", [25, 10_000])
@pytest.mark.parametrize("name", [*PACKED, *MORE])
def test_packed_scores_and_gradients_are_the_padded_ones(
    name: str, budget: int, model_folder: MakeFolder, rows: Batch
) -> None:
    module = load_model(str(model_folder(name)), device=CPU) if name in PACKED else noisy(name)
    module.double()
    padded = language_model(module, "never")
    scores, expected = padded.scores(rows, temperature=0.7), gradients(padded, rows)

    packed = language_model(module, "always", budget)
    found_scores, found = packed.scores(rows, temperature=0.7), gradients(packed, rows)

    torch.testing.assert_close(found_scores.logprobs_BT, scores.logprobs_BT, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found_scores.entropies_BT, scores.entropies_BT, atol=1e-6, rtol=1e-6)
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-6, atol=1e-6 * scale, msg=parameter)


@pytest.mark.parametrize("budget", [25, 10_000])
@pytest.mark.parametrize("name", [*PACKED, "olmo3", "phi3", "glm4", "gpt_neox"])
def test_rows_that_share_their_prompt_have_the_scores_and_gradients_of_rows_apart(
    name: str, budget: int, model_folder: MakeFolder
) -> None:
    module = load_model(str(model_folder(name)), device=CPU) if name in PACKED else noisy(name)
    module.double()
    batch = grouped()
    padded = language_model(module, "never")
    scores, expected = padded.scores(batch, temperature=0.7), gradients(padded, batch)

    shared = language_model(module, "always", budget)
    found_scores, found = shared.scores(batch, temperature=0.7), gradients(shared, batch)

    computed = sum(
        len(micro.packed.tokens_U) for micro in shared.micro_batches(batch, range(len(batch))) if micro.packed
    )
    has_window = shortest_window(module) is not None
    alone = int((batch.lengths_B - 1).sum())
    assert computed == alone if has_window else computed < alone - (6 if budget == 25 else 20)
    torch.testing.assert_close(found_scores.logprobs_BT, scores.logprobs_BT, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found_scores.entropies_BT, scores.entropies_BT, atol=1e-6, rtol=1e-6)
    scale = max(float(g.abs().max()) for g in expected.values())
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-6, atol=1e-6 * scale, msg=parameter)


def test_the_prompts_of_a_group_are_computed_once() -> None:
    batch = grouped()
    model = language_model(random_module("qwen2", SMALL), "always")
    [micro] = model.micro_batches(batch, range(len(batch)))
    assert micro.packed is not None
    prompts, responses = 6 + 1 + 3, int((batch.lengths_B - batch.prompt_lengths_B - 1).sum())
    assert len(micro.packed.tokens_U) == prompts + responses


@pytest.mark.parametrize("name", [*PACKED, *EXPERTS])
def test_in_single_precision_they_agree_to_a_few_of_its_digits(
    name: str, model_folder: MakeFolder, batch: Batch
) -> None:
    module = noisy(name) if name in EXPERTS else load_model(str(model_folder(name)), device=CPU)
    padded, packed = (language_model(module, packing).scores(batch) for packing in ("never", "always"))
    torch.testing.assert_close(packed.logprobs_BT, padded.logprobs_BT, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused_with_its_reason_or_padded(name: str, batch: Batch) -> None:
    config, reason = REFUSED[name]
    module = random_module(name, config)
    before, implementation = language_model(module, "never"), module.config._attn_implementation
    scores = before.scores(batch).logprobs_BT
    with pytest.raises(ModelError, match=rf"backend.packing: found always, but rows of .*{reason}.*; set it to auto"):
        language_model(module, "always")
    assert module.config._attn_implementation == implementation
    assert torch.equal(language_model(module, "auto").scores(batch).logprobs_BT, scores)


def test_a_gap_between_packed_and_padded_is_seen_in_a_model_that_is_hardly_trained() -> None:
    module = random_module("lfm2", REFUSED["lfm2"][0])
    assert packing_obstacle(module) == "a token's hidden state depends on the rows packed before it"


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral"])
def test_checkpointing_computes_packed_rows_again_as_packed(name: str, model_folder: MakeFolder, batch: Batch) -> None:
    module: Any = load_model(str(model_folder(name)), device=CPU)
    model = language_model(module, "always")
    plain = gradients(model, batch)
    checkpoint_activations(module)
    again = gradients(model, batch)
    assert plain.keys() == again.keys()
    for parameter, expected in plain.items():
        torch.testing.assert_close(again[parameter], expected, msg=parameter)


def test_a_module_made_for_packing_computes_padded_rows_and_samples_to_the_bit_as_before(
    model_folder: MakeFolder, batch: Batch
) -> None:
    module: Any = load_model(str(model_folder("mistral")), device=CPU)
    prompt_1l = torch.tensor([[5, 6, 7, 8, 9, 10]])
    scores = language_model(module, "never").scores(batch).logprobs_BT
    sampled = module.generate(prompt_1l, max_new_tokens=8, do_sample=False)
    language_model(module, "always")
    assert torch.equal(language_model(module, "never").scores(batch).logprobs_BT, scores)
    assert torch.equal(module.generate(prompt_1l, max_new_tokens=8, do_sample=False), sampled)


def test_a_saved_module_knows_nothing_of_packing(model_folder: MakeFolder, tmp_path: Path) -> None:
    module: Any = load_model(str(model_folder("qwen2")), device=CPU)
    language_model(module, "always")
    module.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    assert load_model(str(tmp_path), device=CPU).config._attn_implementation == "sdpa"


def test_values_are_packed_too(model_folder: MakeFolder, batch: Batch) -> None:
    module: Any = load_critic(str(model_folder("qwen2")), device=CPU)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    padded, packed = (
        ValueModel(module, device=CPU, precision="fp32", micro_batch_tokens=25, packing=packing).scores(batch)
        for packing in ("never", "always")
    )
    assert padded.any()
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)


# The plan


def test_packed_micro_batches_hold_every_row_once_under_the_budget_without_padding(
    model_folder: MakeFolder, batch: Batch
) -> None:
    model = language_model(load_model(str(model_folder("qwen2")), device=CPU), "always", 20)
    micros = list(model.micro_batches(batch, range(len(batch))))
    assert sorted(torch.cat([micro.rows_b for micro in micros]).tolist()) == [0, 1, 2, 3, 4]
    for micro in micros:
        assert micro.packed is not None
        assert list(micro.packed.lengths) == (batch.lengths_B[micro.rows_b] - 1).tolist(), "the last predicts nothing"
        assert len(micro.packed.tokens_U) <= 20
        assert micro.predicts_bl.sum() == micro.mask_bt.sum()


@pytest.mark.parametrize(
    ("width", "responses", "packs"),
    [
        (16, [9] * 30, False),  # no padding
        (16, [3, 5, 9, 20], False),  # 43 tokens of it, and four calls
        (16, [3] * 30 + [60], True),
        (16, [*range(3, 33), 60], False),  # as many tokens, and a call for each of 31 lengths
        (256, [*range(3, 33), 60], True),  # but each token costs more
    ],
)
def test_auto_packs_where_padding_costs_more_than_calls(
    width: int, responses: list[int], packs: bool, make_batch: Callable[..., Batch]
) -> None:
    module = random_module("qwen2", SMALL | {"hidden_size": width})
    batch = make_batch(prompts=[2] * len(responses), responses=responses)
    micros = list(language_model(module, "auto").micro_batches(batch, range(len(batch))))
    assert [micro.packed is not None for micro in micros] == [packs]


def test_adapters_do_not_change_what_auto_does(make_batch: Callable[..., Batch]) -> None:
    """A PRM with adapters and its reference run the same shapes, so that they agree to the bit at first."""
    batch = make_batch(prompts=[2] * 31, responses=[3] * 30 + [60])
    module = random_module("qwen2", SMALL)
    before = language_model(module, "auto").scores(batch).logprobs_BT
    add_adapters(module, key="prm.lora", base="", rank=16, alpha=8.0, targets="all-linear", seed=0)
    assert torch.equal(language_model(module, "auto").scores(batch).logprobs_BT, before)
