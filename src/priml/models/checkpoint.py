"""Weights and optimizer state on disk: safetensors and JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from priml.errors import ModelError


def save_model(module: nn.Module, tokenizer: Any, folder: Path) -> None:
    """A Hugging Face folder (config, safetensors, tokenizer) that transformers and vLLM load."""
    module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    tokenizer.save_pretrained(folder)


def save_weights(module: nn.Module, path: Path) -> None:
    """All parameters, exactly, in one safetensors file; tied ones once."""
    save_file({name: _on_disk(parameter) for name, parameter in module.named_parameters()}, path)


@torch.no_grad()
def load_weights(module: nn.Module, path: Path) -> None:
    """Copy saved parameters into a module of the same architecture, in place.

    Raises:
        ModelError: the file holds other parameters than the module has; nothing was copied.
    """
    saved = load_file(path)
    parameters = dict(module.named_parameters())
    for name in sorted(saved.keys() | parameters.keys()):
        found = tuple(saved[name].shape) if name in saved else None
        needed = tuple(parameters[name].shape) if name in parameters else None
        if found != needed:
            raise ModelError(
                f"{path}: parameter {name} has shape {found}, the model needs {needed}; "
                "these weights belong to another architecture: resume with the settings the run began with"
            )
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Optimizer state: tensors in safetensors, settings in JSON."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{key}": _on_disk(value) for i, entries in state["state"].items() for key, value in entries.items()}
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps(state["param_groups"]), encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `save_optimizer` wrote into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def weights_digest(module: nn.Module) -> str:
    """sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        digest.update(_on_disk(parameter).flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _on_disk(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
