"""Loading Hugging Face causal language models and tokenizers, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from priml.errors import ModelError


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or Hub id.

    Raises:
        ModelError: it cannot be loaded, or has no end-of-sequence token (responses could never end).
    """
    _check_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source}: no tokenizer could be loaded: {_first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{source}: the tokenizer has no EOS token, so responses could never end; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return tokenizer


def load_model(source: str, *, device: torch.device, trust_remote_code: bool = False) -> nn.Module:
    """A causal language model with fp32 weights, dropout off, in eval mode.

    fp32 masters: at the paper's learning rates most bf16 updates round to nothing. Dropout is off because a ratio
    of two stochastic forward passes is noise.

    Raises:
        ModelError: it is not a model folder, or not a causal language model.
    """
    _check_folder(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{source}: no causal language model could be loaded: {_first_line(error)}") from None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # read by the attention function at every call
    return model.eval().to(device)


def _check_folder(source: str) -> None:
    path = Path(source)
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not path.is_dir():
        raise ModelError(f"{source}: no such model folder; give a Hugging Face folder or a Hub id")
    if looks_local and not (path / "config.json").is_file():
        hint = f"; did you mean {path / 'model'}?" if (path / "model" / "config.json").is_file() else ""
        raise ModelError(f"{source}: not a model folder (no config.json in it){hint}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
