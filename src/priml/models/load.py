"""Loading Hugging Face causal language models and tokenizers, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from priml.errors import ModelError

_REFUSALS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises for a folder or Hub id it cannot use."""


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or Hub id.

    Raises:
        ModelError: it cannot be loaded, or has no end-of-sequence token (responses could never end).
    """
    _check_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except _REFUSALS as error:
        raise ModelError(_refusal(source, "tokenizer", error)) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{source}: the tokenizer has no EOS token, so responses could never end; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return tokenizer


def load_model(source: str, *, device: torch.device, trust_remote_code: bool = False) -> nn.Module:
    """A causal language model with fp32 weights, dropout off, in eval mode.

    fp32 masters: at the paper's learning rates most bf16 updates round to nothing. Dropout is off because a ratio
    of two stochastic forward passes is noise. Only safetensors are read: a pickle can run code.

    Raises:
        ModelError: it is not a model folder, not a causal language model, or some of its weights are missing.
    """
    _check_folder(source)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except _REFUSALS as error:
        raise ModelError(_refusal(source, "causal language model", error)) from None
    model, report = loaded
    if report["missing_keys"]:  # transformers would train on with random numbers in their place
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{source}: {len(missing)} weights of {type(model).__name__} are missing, the first {missing[0]}; "
            "need a complete causal language model: download or export it again"
        )
    _remove_dropout(model)
    return model.eval().to(device)


def _remove_dropout(model: nn.Module) -> None:
    """In layers of their own, and in the rates that attention functions read at every call."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith(("pdrop", "layerdrop"))):
                vars(module)[name] = 0.0


def _check_folder(source: str) -> None:
    path = Path(source)
    looks_local = path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not path.is_dir():
        raise ModelError(f"{source}: no such model folder; give a Hugging Face folder or a Hub id")
    if looks_local and not (path / "config.json").is_file():
        hint = f"; did you mean {path / 'model'}?" if (path / "model" / "config.json").is_file() else ""
        raise ModelError(f"{source}: not a model folder (no config.json in it){hint}")


def _refusal(source: str, wanted: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if Path(source).is_dir():
        return f"{source}: no {wanted} could be loaded from this folder: {reason}; download or export it again"
    return (
        f"{source}: not a folder here, and no {wanted} could be fetched from the Hugging Face Hub: {reason}; "
        "check the spelling, the network, HF_HUB_OFFLINE, and (private models) that you are logged in"
    )
