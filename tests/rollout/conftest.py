"""Tiny random models, and prompts for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from priml.models.tiny import character_tokenizer
from priml.types import Problem, Prompt

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": _LLAMA_LIKE,
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE | {"sliding_window": 4},
    "gemma2": _LLAMA_LIKE | {"sliding_window": 4, "final_logit_softcapping": 3.0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    },
}


def random_model(name: str = "qwen2", *, vocabulary: int | None = None, spread: float = 0.3) -> Any:
    """In float64, so that the shape of a batch does not show in the numbers.

    Two stay in float32: they take the softmax there, where the lowest float64, which is their mask, is infinite.
    """
    tokenizer = character_tokenizer()
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(3)
    config = AutoConfig.for_model(name, **CONFIGS[name], **special, vocab_size=vocabulary or len(tokenizer))
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    model = model if name in ("gemma2", "bloom") else model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return model


def load_prompts(*lengths: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(
            problem=Problem(id=f"p{i}", prompt="", answer=""),
            text="",
            token_ids=tuple(torch.randint(3, 100, (length,), generator=generator).tolist()),
        )
        for i, length in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def make_model() -> Any:
    return random_model


@pytest.fixture(scope="session")
def make_prompts() -> Any:
    return load_prompts
