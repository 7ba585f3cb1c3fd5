"""Tiny random models of many architectures, saved as ordinary Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 29

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXTURE: dict[str, Any] = _LLAMA_LIKE | {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_GPT_LIKE: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "llama": _LLAMA_LIKE | {"tie_word_embeddings": False},
    "mistral": _LLAMA_LIKE | {"sliding_window": 3},
    "gemma2": _LLAMA_LIKE | {"final_logit_softcapping": 2.0, "sliding_window": 3},
    "cohere": _LLAMA_LIKE | {"logit_scale": 0.25},
    "granite": _LLAMA_LIKE | {"logits_scaling": 4.0},
    "phi": _LLAMA_LIKE | {"num_key_value_heads": 2},  # a head with a bias
    "qwen3_moe": _MIXTURE,
    "mixtral": _MIXTURE,
    "phimoe": _MIXTURE,
    "gpt_oss": _MIXTURE | {"sliding_window": 3},
    "deepseek_v3": _MIXTURE  # its first layer is dense, and every other has a shared expert
    | {"num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4},
    "gpt2": _GPT_LIKE | {"vocab_size": VOCABULARY, "resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.5},
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 12,
        "dropout": 0.5,
        "layerdrop": 0.5,
    },
}


def save_random(name: str, folder: Path, **changes: Any) -> Path:
    """A model whose weights are large enough that its distributions are far from uniform."""
    torch.manual_seed(len(name))
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(CONFIGS[name] | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    return folder


def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders by architecture, each written once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_random(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder
