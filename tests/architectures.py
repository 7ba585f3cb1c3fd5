"""Tiny random models of many architectures, saved as ordinary Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 29

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA_LIKE = _SIZES | {"num_key_value_heads": 1, "head_dim": 8}
_PAIRED = _LLAMA_LIKE | {"num_key_value_heads": 2}
_SLIDING = _PAIRED | {"sliding_window": 6}
_MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 8,
    "first_k_dense_replace": 1,  # the first layer is dense
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4, "v_head_dim": 8}
_GPT_LIKE: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "llama": _LLAMA_LIKE | {"tie_word_embeddings": False},
    "mistral": _LLAMA_LIKE | {"sliding_window": 3},
    "gemma2": _LLAMA_LIKE | {"final_logit_softcapping": 2.0, "sliding_window": 3},
    "cohere": _LLAMA_LIKE | {"logit_scale": 0.25},
    "granite": _LLAMA_LIKE | {"logits_scaling": 4.0},
    "phi": _PAIRED,  # a head with a bias
    "qwen3_moe": _LLAMA_LIKE | _MIXTURE,
    "mixtral": _LLAMA_LIKE | _MIXTURE | {"router_jitter_noise": 0.3},
    "phimoe": _LLAMA_LIKE | _MIXTURE | {"router_jitter_noise": 0.3, "input_jitter_noise": 0.1},
    "gpt_oss": _LLAMA_LIKE | _MIXTURE | {"sliding_window": 3},
    "deepseek_v3": _PAIRED | _MIXTURE | _LATENT,
    "gpt2": _GPT_LIKE | {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.5},
    "opt": _SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 12, "dropout": 0.5, "layerdrop": 0.5},
}
"""A few, by `model_type`."""

_DENSE = """
apertus arcee biogpt bitnet diffllama ernie4_5 gemma glm glm4 gpt_neox helium hunyuan_v1_dense internlm3 jais2
ministral3 nanochat nemotron olmo olmo2 persimmon seed_oss stablelm llama4_text xlstm rwkv openai-gpt jamba lfm3
"""
_WINDOWS = """
cohere2 cwm doge exaone4 gemma3_text granite_swa ministral olmo3 phi3 smollm3 starcoder2 vaultgemma modernbert-decoder
recurrent_gemma
"""
_MIXTURES = """
ernie4_5_moe dots1 flex_olmo glm4_moe granitemoe granitemoeshared hunyuan_v1_moe hy_v3 jetmoe
minimax_m2 olmoe qwen2_moe solar_open
"""
_WINDOWED_MIXTURES = "exaone_moe laguna mellum afmoe cohere2_moe"
_LATENTS = """
deepseek_v2 deepseek_v32 glm4_moe_lite glm_moe_dsa youtu longcat_flash minicpm3
"""
_ROPE = {"rope_theta": 100.0}
_LONG = _ROPE | {
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": 16,
}
MORE_CONFIGS: dict[str, dict[str, Any]] = (
    dict.fromkeys(
        _DENSE.split(),
        _PAIRED | {"expert_layer_period": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
    )
    | dict.fromkeys(_WINDOWS.split(), _SLIDING | {"local_attention": 6, "attention_window_size": 6})
    | dict.fromkeys(
        _MIXTURES.split(),
        _PAIRED | _MIXTURE,
    )
    | dict.fromkeys(_WINDOWED_MIXTURES.split(), _SLIDING | _MIXTURE)
    | dict.fromkeys(
        _LATENTS.split(),
        _PAIRED | _MIXTURE | _LATENT,
    )
    | dict.fromkeys(
        ["codegen", "gpt_bigcode", "gptj", "mpt"], _GPT_LIKE | {"rotary_dim": 4, "n_head": 4, "d_model": 16}
    )
    | {
        "phi3 longrope": _PAIRED
        | {"original_max_position_embeddings": 16, "rope_parameters": _LONG | {"rope_type": "longrope"}},
        "phimoe longrope": _PAIRED
        | _MIXTURE
        | {"rope_parameters": _LONG | {"rope_type": "longrope", "short_mscale": 1.2, "long_mscale": 1.3}},
        "llama yarn": _PAIRED | {"rope_parameters": _ROPE | {"rope_type": "yarn", "factor": 4.0}},
        "llama dynamic": _PAIRED | {"rope_parameters": _ROPE | {"rope_type": "dynamic", "factor": 4.0}},
        "ctrl": _GPT_LIKE | {"dff": 24},
        "falcon": _SIZES,
        "gpt_neo": _SIZES | {"attention_types": [[["global", "local"], 1]], "window_size": 6},
        "gemma3n_text": _SLIDING
        | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 4}
        | {"altup_num_inputs": 2, "laurel_rank": 4, "num_kv_shared_layers": 0, "num_hidden_layers": 2}
        | {"layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0]},
        "gemma4_text": _SLIDING
        | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 4}
        | {"global_head_dim": 8},
        "gemma4_unified_text": _SLIDING,
        "xglm": _SIZES | {"d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 2},
        "mimo_v2_flash": _SLIDING
        | _MIXTURE
        | {"head_dim": 24, "v_head_dim": 8, "num_key_value_heads": 1}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        "deepseek_v4": _SLIDING
        | _MIXTURE
        | {"q_lora_rank": 8, "o_lora_rank": 8, "o_groups": 2, "num_key_value_heads": 1}
        | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4},
        "mamba": _SIZES | {"state_size": 4},
        "falcon_mamba": _SIZES | {"state_size": 4},
        "mamba2": _SIZES | {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
        "bamba": _PAIRED | _MAMBA | {"attn_layer_indices": [1]},
        "granitemoehybrid": _PAIRED
        | _MIXTURE
        | _MAMBA
        | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 8},
        "falcon_h1": _PAIRED | _MAMBA | {"mamba_d_ssm": 32},
        "zamba2": _SIZES
        | {"num_key_value_heads": 2, "layers_block_type": ["mamba", "hybrid"], "adapter_rank": 4}
        | {"n_mamba_heads": 4, "mamba_d_state": 8, "chunk_size": 4},
        "lfm2": _PAIRED | {"layer_types": ["conv", "full_attention"]},
        "lfm2_moe": _PAIRED | _MIXTURE | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        "qwen3_next": _PAIRED | _MIXTURE | _DELTA,
        "qwen3_5_text": _PAIRED | _DELTA,
        "qwen3_5_moe_text": _PAIRED | _MIXTURE | _DELTA,
        "olmo_hybrid": _PAIRED | _DELTA,
        "nemotron_h": {k: v for k, v in (_PAIRED | _MIXTURE).items() if k != "num_hidden_layers"}
        | {"layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8}
        | {"ssm_state_size": 8, "n_groups": 1, "chunk_size": 4, "moe_shared_expert_intermediate_size": 8},
        "minimax": _PAIRED | _MIXTURE | {"layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    }
)
"""All others that were tried. A word behind the `model_type` tells variants apart."""


def save_random(name: str, folder: Path, **changes: Any) -> Path:
    """A model whose weights are large enough that its distributions are far from uniform."""
    torch.manual_seed(len(name))
    config = AutoConfig.for_model(name.split()[0], **((CONFIGS | MORE_CONFIGS)[name] | changes))
    model: Any = AutoModelForCausalLM.from_config(config)
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
