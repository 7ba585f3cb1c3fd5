"""Scoring: any architecture, in chunks and micro-batches, equals the plain computation on full logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertLMHeadModel, BertModel, Qwen2Config, Qwen2ForCausalLM

from priml.batch import Batch, Row, collate
from priml.errors import ModelError
from priml.models.forward import LanguageModel, ValueModel
from priml.models.load import checkpoint_activations, load_critic, load_model

CPU = torch.device("cpu")
ARCHITECTURES = [
    "qwen2",
    "qwen3",
    "llama",
    "mistral",
    "gemma2",
    "cohere",
    "granite",
    "phi",
    "gpt2",
    "bloom",
    "opt",
]
MakeFolder = Callable[[str], Path]


def language_model(module: Any, *, precision: str = "fp32", micro_batch_tokens: int = 10_000) -> LanguageModel:
    return LanguageModel(module, device=CPU, precision=precision, micro_batch_tokens=micro_batch_tokens)


def naive_scores(module: Any, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """Row by row, without padding, from full logits."""
    logprobs_BT, entropies_BT = torch.zeros(2, *batch.mask_BT.shape, dtype=next(module.parameters()).dtype).unbind(0)
    columns = []
    for i, (prompt, response) in enumerate(zip(batch.prompt_lengths_B, batch.response_lengths_B, strict=True)):
        tokens_1L = batch.tokens_BL[i : i + 1, : prompt + response]
        logits_LV = module(input_ids=tokens_1L, use_cache=False).logits[0, prompt - 1 : -1]
        logprobs_LV = (logits_LV / temperature).log_softmax(-1)
        chosen = logprobs_LV.gather(1, tokens_1L[0, prompt:, None]).squeeze(1)
        columns.append((i, int(response), chosen, -(logprobs_LV.exp() * logprobs_LV).sum(1)))
    for i, response, chosen, entropy in columns:
        logprobs_BT = logprobs_BT.index_put((torch.tensor(i), torch.arange(response)), chosen)
        entropies_BT = entropies_BT.index_put((torch.tensor(i), torch.arange(response)), entropy)
    return logprobs_BT, entropies_BT


def gradients(module: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_the_full_logits(name: str, model_folder: MakeFolder, batch: Batch) -> None:
    module = load_model(str(model_folder(name)), device=CPU)
    for temperature in (1.0, 0.7):
        scores = language_model(module).scores(batch, temperature=temperature)
        with torch.no_grad():
            logprobs_BT, entropies_BT = naive_scores(module, batch, temperature)
        torch.testing.assert_close(scores.logprobs_BT, logprobs_BT, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(scores.entropies_BT, entropies_BT, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_observations_are_read_and_not_scored(name: str, model_folder: MakeFolder, batch: Batch) -> None:
    """Every third token of a response comes from outside."""
    module = load_model(str(model_folder(name)), device=CPU)
    rows = []
    for i, (prompt, length) in enumerate(zip(batch.prompt_lengths_B, batch.lengths_B, strict=True)):
        tokens = batch.tokens_BL[i, :length].tolist()
        is_trained = np.arange(int(length - prompt)) % 3 != 1
        rows.append(Row(tokens[:prompt], tokens[prompt:], 0.0, 0, (), is_trained=is_trained))
    holed = collate(rows, step=0)
    found = language_model(module).scores(holed)
    with torch.no_grad():
        logprobs_BT, entropies_BT = naive_scores(module, batch, 1.0)
    for i, row in enumerate(rows):
        for found_T, whole_T in ((found.logprobs_BT[i], logprobs_BT[i]), (found.entropies_BT[i], entropies_BT[i])):
            expected_t = whole_T[: len(row.response_ids)][row.is_trained]
            torch.testing.assert_close(found_T[: len(expected_t)], expected_t, atol=2e-5, rtol=1e-5)
            assert not found_T[len(expected_t) :].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_the_full_logits(name: str, model_folder: MakeFolder, batch: Batch) -> None:
    module = load_model(str(model_folder(name)), device=CPU).double()
    weights_BT = torch.linspace(-1, 2, batch.mask_BT.numel(), dtype=torch.float64).view(batch.mask_BT.shape)

    logprobs_BT, entropies_BT = naive_scores(module, batch, 0.7)
    (logprobs_BT * weights_BT + entropies_BT * weights_BT.flip(0)).sum().backward()
    expected = gradients(module)
    module.zero_grad()

    model = language_model(module)
    for micro in model.micro_batches(batch, range(len(batch))):
        logprobs_bt, entropies_bt = model.score(micro, temperature=0.7)
        (logprobs_bt * micro.take(weights_BT) + entropies_bt * micro.take(weights_BT.flip(0))).sum().backward()

    found = gradients(module)
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-6, atol=1e-6 * scale, msg=parameter)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "opt", "qwen2", "mixtral", "phimoe"])
def test_gradient_checkpointing_changes_nothing_and_neither_dropout_nor_jitter_is_left(
    name: str, model_folder: MakeFolder, batch: Batch
) -> None:
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        module: Any = load_model(str(model_folder(name)), device=CPU)
        if checkpointing:
            checkpoint_activations(module)
        model = language_model(module)
        with model.training():
            assert any(part.training for part in module.modules()) == checkpointing
            for micro in model.micro_batches(batch, range(len(batch))):
                model.score(micro)[0].sum().backward()
        assert not any(part.training for part in module.modules())
        found.append(gradients(module))
    assert found[0].keys() == found[1].keys()
    for parameter, plain in found[0].items():
        torch.testing.assert_close(found[1][parameter], plain, msg=parameter)


@pytest.mark.parametrize("budget", [1, 20, 27, 10_000])
def test_micro_batches_hold_every_row_once_sorted_by_length_under_the_budget(
    budget: int, model_folder: MakeFolder, batch: Batch
) -> None:
    model = language_model(load_model(str(model_folder("qwen2")), device=CPU), micro_batch_tokens=budget)
    lengths_B = batch.prompt_lengths_B + batch.response_lengths_B

    micros = list(model.micro_batches(batch, [4, 0, 2, 1]))

    rows = torch.cat([micro.rows_b for micro in micros])
    assert sorted(rows.tolist()) == [0, 1, 2, 4]
    assert lengths_B[rows].tolist() == sorted(lengths_B[rows].tolist())
    for micro in micros:
        assert micro.tokens_bl.numel() <= budget or len(micro.rows_b) == 1
        assert micro.tokens_bl.shape[1] == lengths_B[micro.rows_b].max()
        assert micro.predicts_bl.sum() == micro.mask_bt.sum() == batch.response_lengths_B[micro.rows_b].sum()


def test_a_micro_batch_is_closed_only_when_the_next_row_would_not_fit(model_folder: MakeFolder, batch: Batch) -> None:
    model = language_model(load_model(str(model_folder("qwen2")), device=CPU), micro_batch_tokens=20)
    lengths_B = batch.prompt_lengths_B + batch.response_lengths_B
    micros = list(model.micro_batches(batch, range(len(batch))))
    assert len(micros) > 1
    for one, following in pairwise(micros):
        assert (len(one.rows_b) + 1) * int(lengths_B[following.rows_b[0]]) > 20


def test_values_go_into_a_micro_batch_and_back_to_their_place(model_folder: MakeFolder, batch: Batch) -> None:
    model = language_model(load_model(str(model_folder("qwen2")), device=CPU), micro_batch_tokens=20)
    given_BT = torch.rand(batch.mask_BT.shape)
    back_BT = torch.zeros_like(given_BT)
    for micro in model.micro_batches(batch, range(len(batch))):
        micro.put(micro.take(given_BT).masked_fill(~micro.mask_bt, 0.0), back_BT)
        assert micro.take_rows(batch.outcomes_B).tolist() == [batch.outcomes_B[i].item() for i in micro.rows_b]
    assert torch.equal(back_BT, given_BT.masked_fill(~batch.mask_BT, 0.0))


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "gemma2"])
def test_the_value_of_the_padding_does_not_matter(name: str, model_folder: MakeFolder, batch: Batch) -> None:
    model = language_model(load_model(str(model_folder(name)), device=CPU))
    is_padding_BL = (
        torch.arange(batch.tokens_BL.shape[1]) >= (batch.prompt_lengths_B + batch.response_lengths_B)[:, None]
    )
    other = replace(batch, tokens_BL=batch.tokens_BL.masked_fill(is_padding_BL, 17))

    assert bool(is_padding_BL.any())
    assert torch.equal(model.scores(batch).logprobs_BT, model.scores(other).logprobs_BT)


def test_scores_do_not_depend_on_the_micro_batches(model_folder: MakeFolder, batch: Batch) -> None:
    module = load_model(str(model_folder("gemma2")), device=CPU)
    whole, split = (language_model(module, micro_batch_tokens=n).scores(batch) for n in (10_000, 15))
    torch.testing.assert_close(whole.logprobs_BT, split.logprobs_BT, rtol=1e-5, atol=1e-5)
    assert bool((whole.logprobs_BT[~batch.mask_BT] == 0).all())


def test_grad_mode_does_not_change_a_single_bit(model_folder: MakeFolder, batch: Batch) -> None:
    model = language_model(load_model(str(model_folder("qwen2")), device=CPU))
    scores = model.scores(batch)
    found_BT = torch.zeros_like(scores.logprobs_BT)
    with model.training():
        for micro in model.micro_batches(batch, range(len(batch))):
            micro.put(model.score(micro)[0], found_BT)
    assert torch.equal(found_BT, scores.logprobs_BT)


def test_bf16_autocast_leaves_float32_results_near_the_exact_ones(model_folder: MakeFolder, batch: Batch) -> None:
    module = load_model(str(model_folder("llama")), device=CPU)
    exact, lowered = (language_model(module, precision=p).scores(batch) for p in ("fp32", "bf16"))
    assert lowered.logprobs_BT.dtype == torch.float32
    torch.testing.assert_close(lowered.logprobs_BT, exact.logprobs_BT, atol=0.3, rtol=0.1)
    assert not torch.equal(lowered.logprobs_BT, exact.logprobs_BT)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation hands out."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_logits_of_all_tokens_never_exist_forward_or_backward(
    monkeypatch: pytest.MonkeyPatch, make_batch: Callable[..., Batch]
) -> None:
    monkeypatch.setattr("priml.maths.logprobs.MAX_CHUNK_TOKENS", 8)  # the real 1024 would need a large test
    vocabulary = 4001
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=None,
    )  # fmt: skip
    model = language_model(Qwen2ForCausalLM(config).eval())
    batch = make_batch(prompts=[2] * 8, responses=[12] * 8)
    with _Largest() as largest:
        for micro in model.micro_batches(batch, range(len(batch))):
            logprobs_bt, entropies_bt = model.score(micro)
            (logprobs_bt + entropies_bt).sum().backward()

    assert largest.numel >= 8 * vocabulary, "the watch must see the chunks"
    assert largest.numel < 8 * 12 * vocabulary / 4


def test_a_model_that_does_more_to_its_logits_is_refused(model_folder: MakeFolder) -> None:
    class Tilted(Qwen2ForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    with pytest.raises(ModelError, match="Tilted: its logits are not a plain projection"):
        language_model(Tilted.from_pretrained(model_folder("qwen2")).eval())


def test_even_a_barely_trained_model_is_told_from_its_scaled_twin(save_tiny_model: Any, tmp_path: Path) -> None:
    # With logits all near 0 a fixed tolerance on log-probs would let any scale pass.
    module = load_model(str(save_tiny_model("granite", tmp_path, logits_scaling=8.0)), device=CPU)
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(1e-3)  # pyright: ignore
    model = language_model(module)
    assert model.unit._head._scale == pytest.approx(1 / 8)


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = BertConfig(vocab_size=29, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ModelError, match="depends on the tokens after it; give a causal"):
        language_model(BertLMHeadModel(config).eval())


def test_a_model_without_a_head_is_refused() -> None:
    config = BertConfig(vocab_size=29, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ModelError, match="BertModel: no output projection"):
        language_model(BertModel(config).eval())


# Values


def build_critic(folder: Path, *, micro_batch_tokens: int = 10_000, precision: str = "fp32") -> ValueModel:
    """With a head that says something."""
    module: Any = load_critic(str(folder), device=CPU)
    model = ValueModel(module, device=CPU, precision=precision, micro_batch_tokens=micro_batch_tokens)
    with torch.no_grad():
        for parameter in model.unit.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2"])
def test_a_value_is_the_models_output_before_its_token(name: str, model_folder: MakeFolder, batch: Batch) -> None:
    model = build_critic(model_folder(name), micro_batch_tokens=40)
    values_BT = model.scores(batch)
    for i, (prompt, response) in enumerate(zip(batch.prompt_lengths_B, batch.response_lengths_B, strict=True)):
        tokens_1L = batch.tokens_BL[i : i + 1, : prompt + response]
        hidden_1LD = model.module.base_model(input_ids=tokens_1L, use_cache=False).last_hidden_state
        expected_T = model.unit.head(hidden_1LD)[0, prompt - 1 : -1, 0]
        torch.testing.assert_close(values_BT[i, :response], expected_T, atol=1e-5, rtol=1e-4)
        assert not values_BT[i, response:].any()


def test_a_value_knows_nothing_of_its_own_token(model_folder: MakeFolder, batch: Batch) -> None:
    model = build_critic(model_folder("qwen2"))
    last_B = batch.prompt_lengths_B + batch.response_lengths_B - 1
    tokens_BL = batch.tokens_BL.clone()
    tokens_BL[torch.arange(len(batch)), last_B] = 7
    changed = replace(batch, tokens_BL=tokens_BL)
    assert torch.equal(model.scores(changed), model.scores(batch))


def test_under_autocast_the_head_stays_in_float32(model_folder: MakeFolder, batch: Batch) -> None:
    exact, rounded = (build_critic(model_folder("qwen2"), precision=p) for p in ("fp32", "bf16"))
    (micro,) = rounded.micro_batches(batch, range(len(batch)))
    values_bt = rounded.score(micro)
    assert values_bt.dtype == torch.float32
    torch.testing.assert_close(values_bt, exact.score(micro), atol=0.2, rtol=0.05)
