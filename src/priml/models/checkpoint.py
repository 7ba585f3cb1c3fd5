"""Weights and optimizer state on disk: safetensors and JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_model(module: nn.Module, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face folder (config, safetensors, tokenizer) that transformers and vLLM load."""
    module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(folder)


def save_weights(module: nn.Module, path: Path) -> None:
    """All parameters, exactly, in one safetensors file; tied ones once."""
    save_file({name: p.detach().cpu().contiguous() for name, p in module.named_parameters()}, path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy saved parameters into a module of the same architecture, in place."""
    saved = load_file(path)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(saved[name])


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Optimizer state: tensors in safetensors, settings in JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value.detach().cpu().contiguous()
            else:
                scalars[f"{index}.{key}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps({"groups": state["param_groups"], "scalars": scalars}))


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `save_optimizer` wrote into an optimizer over the same parameters."""
    described = json.loads((folder / "optimizer.json").read_text())
    values: dict[str, Any] = {**load_file(folder / "optimizer.safetensors"), **described["scalars"]}
    state: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": described["groups"]})


def weights_digest(module: nn.Module) -> str:
    """sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
