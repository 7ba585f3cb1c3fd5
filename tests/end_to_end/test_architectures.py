"""Every architecture: sampler, trainer and transformers say the same of a token, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import CONFIGS, MORE_CONFIGS, VOCABULARY, model_folders
from priml.batch import Batch, Row, collate
from priml.errors import ModelError
from priml.models.forward import LanguageModel
from priml.models.load import checkpoint_activations, load_model
from priml.models.rope import frequency_switch
from priml.models.tiny import character_tokenizer
from priml.rollout.base import SamplingSpec
from priml.rollout.transformers import TransformersSampler
from priml.types import Problem, Prompt

CPU = torch.device("cpu")
ATOL = 5e-5
QUICK = ("qwen2", "gemma2", "gpt2", "mixtral", "deepseek_v3", "gpt_oss", "phi3 longrope", "qwen3_next", "lfm2", "mamba")
REFUSED = {
    "llama4_text": "no output projection over a base model found",
    "xlstm": "its logits are not a plain projection",
    "modernbert-decoder": "its logits are not a plain projection",
}
ALL = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in CONFIGS | MORE_CONFIGS
    if name not in REFUSED
]
LENGTHS = (11, 3, 3)
OWN_DIFFERENCE = {"zamba2": 1e-2, "nemotron_h": 3e-3}
"""Nats between transformers' own forward pass and its own step with a cache, which clamp a time step differently."""
OTHER_WITH_GRADIENT = {"doge": 1e-5}
"""Nats between transformers' own forward passes with and without gradient, which take different kernels."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return model_folders(tmp_path_factory)


def load_prompts() -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(
            problem=Problem(id=f"p{i}", prompt="", answer=""),
            text="",
            token_ids=tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()),
        )
        for i, length in enumerate(LENGTHS)
    ]


def language_model(module: Any, *, micro_batch_tokens: int = 1000) -> LanguageModel:
    return LanguageModel(module, CPU, "fp32", micro_batch_tokens)


@torch.no_grad()
def logprobs_alone(module: Any, batch: Batch, temperature: float) -> Tensor:
    """transformers' own: of each row alone; where frequencies depend on the length, of each prefix alone."""
    found_BT = torch.zeros(batch.mask_BT.shape)
    for row, (prompt, length) in enumerate(zip(batch.prompt_lengths_B.tolist(), batch.lengths_B.tolist(), strict=True)):
        tokens_L = batch.tokens_BL[row, :length].long()
        if frequency_switch(module.config.get_text_config()):
            passes = [module(input_ids=tokens_L[None, :end], use_cache=False) for end in range(prompt, length)]
            logits_tV = torch.stack([output.logits[0, -1] for output in passes])
        else:
            logits_tV = module(input_ids=tokens_L[None], use_cache=False).logits[0, prompt - 1 : -1]
        logprobs_tV = (logits_tV / temperature).log_softmax(-1)
        found_BT[row, : length - prompt] = logprobs_tV.gather(1, tokens_L[prompt:, None]).squeeze(1)
    return found_BT


def gradients(model: LanguageModel, batch: Batch, expected_BT: Tensor, tolerance: float) -> dict[str, Tensor]:
    """Of the mean log-prob. In train mode log-probs are those of before: the first ratio is exactly 1."""
    found_BT = torch.zeros(batch.mask_BT.shape)
    with model.training():
        for micro in model.micro_batches(batch, range(len(batch))):
            logprobs_bt, _ = model.score(micro, temperature=0.7)
            (logprobs_bt.sum() / batch.mask_BT.sum()).backward()
            micro.put(logprobs_bt, found_BT)
    torch.testing.assert_close(found_BT, expected_BT, atol=tolerance, rtol=0)
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ALL)
def test_sampler_trainer_and_transformers_agree(name: str, model_folder: Callable[[str], Path]) -> None:
    module: Any = load_model(str(model_folder(name)), device=CPU)
    sampler = TransformersSampler(module, character_tokenizer(), device=CPU, precision="fp32", max_rows=100)
    spec = SamplingSpec(group_size=2, temperature=0.7, max_new_tokens=12, seed=0, step=1)
    groups = sampler.sample(load_prompts(), spec)
    responses = [(group.prompt, trajectory) for group in groups for trajectory in group.trajectories]
    rows = [Row(p.token_ids, t.token_ids, 0.0, 0, (), sampler_logprobs=t.logprobs) for p, t in responses]
    batch = collate(rows, step=1)
    assert batch.sampler_logprobs_BT is not None

    scores = {t: language_model(module).scores(batch, temperature=t).logprobs_BT for t in (0.7, 1.3)}
    for temperature, found_BT in scores.items():
        torch.testing.assert_close(found_BT, logprobs_alone(module, batch, temperature), atol=ATOL, rtol=0)
    tolerance = OWN_DIFFERENCE.get(name, ATOL)
    torch.testing.assert_close(batch.sampler_logprobs_BT, scores[0.7], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in REFUSED])
def test_what_cannot_be_scored_is_refused(name: str, model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]):
        language_model(load_model(str(model_folder(name)), device=CPU))


@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradients_do_not_depend_on_micro_batches(name: str, model_folder: Callable[[str], Path]) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = ((11, 9), (3, 12), (5, 2), (15, 4))
    ids = [torch.randint(VOCABULARY, (p + r,), generator=generator).tolist() for p, r in lengths]
    batch = collate([Row(x[:p], x[p:], 0.0, 0, ()) for x, (p, _) in zip(ids, lengths, strict=True)], step=1)
    found = []
    for micro_batch_tokens, recomputes in ((1, False), (1000, False), (1000, True)):
        module: Any = load_model(str(model_folder(name)), device=CPU)
        if recomputes and not module.supports_gradient_checkpointing:
            continue
        if recomputes:
            checkpoint_activations(module)
        model = language_model(module, micro_batch_tokens=micro_batch_tokens)
        logprobs_BT = model.scores(batch, temperature=0.7).logprobs_BT
        found.append((logprobs_BT, gradients(model, batch, logprobs_BT, OTHER_WITH_GRADIENT.get(name, 0.0))))
    scale = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    for logprobs_BT, own in found[1:]:
        torch.testing.assert_close(logprobs_BT, found[0][0], atol=ATOL, rtol=0)
        for parameter, gradient in found[0][1].items():
            torch.testing.assert_close(own[parameter], gradient, rtol=1e-3, atol=1e-4 * scale, msg=parameter)
