"""A token is computed with the frequencies that the model has for its prefix, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from priml.batch import Batch
from priml.errors import ModelError
from priml.models.forward import LanguageModel
from priml.models.load import checkpoint_activations, load_model
from priml.models.rope import check_steady, frequency_switch

CPU = torch.device("cpu")
SWITCH = 16
SWITCHING = ["phi3 longrope", "phimoe longrope"]


def language_model(module: Any, micro_batch_tokens: int) -> LanguageModel:
    return LanguageModel(module, CPU, "fp32", micro_batch_tokens, packing="auto")


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Rows on both sides of the switch, and across it."""
    return make_batch(prompts=[3, 14, 20, 2, 16], responses=[5, 9, 4, 14, 1])


@torch.no_grad()
def expected_logprobs(module: Any, batch: Batch) -> Tensor:
    """Each from a pass over its prefix alone."""
    found_BT = torch.zeros(batch.mask_BT.shape)
    for row, (prompt, response) in enumerate(zip(batch.prompt_lengths_B, batch.response_lengths_B, strict=True)):
        for t in range(int(response)):
            prefix = batch.tokens_BL[row, : prompt + t].unsqueeze(0).long()
            logprobs_V = module(input_ids=prefix, use_cache=False).logits[0, -1].log_softmax(-1)
            found_BT[row, t] = logprobs_V[int(batch.tokens_BL[row, prompt + t])]
    return found_BT


@pytest.mark.parametrize("name", SWITCHING)
@pytest.mark.parametrize("micro_batch_tokens", [1, 50, 1000])
def test_log_probs_are_those_of_each_prefix_alone(
    name: str, micro_batch_tokens: int, model_folder: Callable[[str], Path], batch: Batch
) -> None:
    module: Any = load_model(str(model_folder(name)), device=CPU)
    assert frequency_switch(module.config) == SWITCH
    found_BT = language_model(module, micro_batch_tokens).scores(batch).logprobs_BT
    torch.testing.assert_close(found_BT, expected_logprobs(module, batch), atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", SWITCHING)
def test_gradients_do_not_depend_on_micro_batches_or_recomputation(
    name: str, model_folder: Callable[[str], Path], batch: Batch
) -> None:
    found = []
    for micro_batch_tokens, recomputes in ((1, False), (1000, False), (60, True)):
        module: Any = load_model(str(model_folder(name)), device=CPU)
        if recomputes:
            checkpoint_activations(module)
        model = language_model(module, micro_batch_tokens)
        with model.training():
            for micro in model.micro_batches(batch, range(len(batch))):
                model.score(micro)[0].sum().backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    scale = max(float(gradient.abs().max()) for gradient in found[0].values())
    for other in found[1:]:
        for parameter, gradient in found[0].items():
            torch.testing.assert_close(other[parameter], gradient, rtol=1e-3, atol=1e-4 * scale, msg=parameter)


def test_frequencies_that_change_with_every_token_are_refused(
    model_folder: Callable[[str], Path], make_batch: Callable[..., Batch]
) -> None:
    module: Any = load_model(str(model_folder("llama dynamic")), device=CPU)
    model = language_model(module, 1000)
    check_steady(module, 64)
    model.scores(make_batch(prompts=[60], responses=[4]))
    with pytest.raises(
        ModelError, match=r"LlamaForCausalLM: its RoPE is `dynamic`.* first 64, .* may have 65; shorten"
    ):
        model.scores(make_batch(prompts=[60], responses=[5]))


def test_one_set_of_frequencies_has_no_switch(model_folder: Callable[[str], Path]) -> None:
    for name in ("qwen2", "gpt2", "llama yarn"):
        module = load_model(str(model_folder(name)), device=CPU)
        assert frequency_switch(module.config) is None
        check_steady(module, 10**6)
