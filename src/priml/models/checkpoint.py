"""Weights and optimizer state on disk: safetensors and JSON, never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from priml.errors import ModelError
from priml.files import write_whole
from priml.models.lora import has_adapters, merged, merged_parameters
from priml.models.sharded import (
    is_sharded,
    load_shards,
    on_host,
    saved_shapes,
    stage_shards,
    whole,
    writes_whole_files,
)
from priml.types import Tokenizer, Write

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_model(
    module: PreTrainedModel, tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a Hugging Face folder (config, safetensors, tokenizer) that transformers and vLLM load.

    Adapters are added to the weights that are written, not to the module's. Sharded weights are gathered by all ranks
    and written by the first. Weights that an architecture wants in float32 stay so in any `dtype`.
    """
    differs = is_sharded(module.parameters()) or has_adapters(module) or dtype != torch.float32
    state = _converted(module, whole_state(module), dtype) if differs else None
    if writes_whole_files():
        module.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        if dtype != torch.float32:  # transformers writes the type of the module
            path = folder / "config.json"
            config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
            write_whole(path, json.dumps(config, indent=2))


def _converted(module: PreTrainedModel, state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tied tensors stay one."""
    kept = [*(module._keep_in_fp32_modules or ()), *(module._keep_in_fp32_modules_strict or ())]
    made: dict[int, Tensor] = {}
    for name, tensor in state.items():
        is_lowered = tensor.is_floating_point() and not any(part in name for part in kept)
        made.setdefault(id(tensor), tensor.to(dtype) if is_lowered else tensor)
    return {name: made[id(tensor)] for name, tensor in state.items()}


def stage_weights(module: nn.Module, path: Path) -> list[Write]:
    """Copy all parameters that are trained to host memory, exactly, tied ones once; with adapters, those alone.

    What is returned writes the copy into one safetensors file, or (sharded) into a folder of that name.
    """
    return _staged(_trained(module), path)


@torch.no_grad()
def load_weights(module: nn.Module, path: Path) -> None:
    """Copy saved parameters into a module of the same architecture, in place, whatever number of ranks saved them.

    Raises:
        ModelError: the file holds other parameters than the module trains; nothing was copied.
    """
    saved = _shapes(path)
    parameters = _trained(module)
    for name in sorted(saved.keys() | parameters.keys()):
        found = saved.get(name)
        needed = tuple(parameters[name].shape) if name in parameters else None
        if found != needed:
            raise ModelError(
                f"{path}: parameter {name} has shape {found}, the model needs {needed}; "
                "these weights belong to another architecture: resume with the settings the run began with"
            )
    _load(parameters, path)


def stage_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> list[Write]:
    """Copy optimizer state to host memory; what is returned writes tensors to safetensors, settings to JSON."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{key}": value for i, entries in state["state"].items() for key, value in entries.items()}
    writes = _staged(tensors, folder / "optimizer.safetensors")
    if writes_whole_files():
        writes.append(partial(write_whole, folder / "optimizer.json", json.dumps(state["param_groups"])))
    return writes


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `stage_optimizer` wrote into an optimizer over the same parameters."""
    path = folder / "optimizer.safetensors"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, shape in _shapes(path).items():
        index, key = name.split(".", 1)
        like = parameters[int(index)].detach()
        # Moments are sharded as their parameter is; the count of steps is a number of its own.
        moment = torch.zeros_like(like) if shape == tuple(like.shape) else torch.zeros(shape)
        state.setdefault(int(index), {})[key] = moment
    _load({f"{i}.{key}": value for i, entries in state.items() for key, value in entries.items()}, path)
    groups = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def weights_digest(module: nn.Module) -> str:
    """sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        digest.update(_on_disk(parameter).flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _staged(tensors: Mapping[str, Tensor], path: Path) -> list[Write]:
    if is_sharded(tensors.values()):
        return stage_shards(tensors, path.with_suffix(""))
    if not writes_whole_files():
        return []
    return [partial(save_file, {name: on_host(tensor) for name, tensor in tensors.items()}, path)]


def _load(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill tensors, in place, with what was saved under this path by one process or by several."""
    if path.is_file() and not is_sharded(tensors.values()):
        saved = load_file(path)
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
    elif tensors:
        load_shards(tensors, path.parent if path.is_file() else path.with_suffix(""))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        return saved_shapes(path.with_suffix(""))
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def checkpoint_state(module: PreTrainedModel, *, add: bool = True) -> dict[str, Tensor]:
    """Parameters under the names of a Hugging Face checkpoint, tied ones once; `add` the adapters. Those that no
    adapter changes are views."""
    return revert_weight_conversion(module, dict(merged_parameters(module, add=add)))


def gathered_checkpoint(module: PreTrainedModel, dtype: torch.dtype, *, add: bool = True) -> dict[str, Tensor]:
    """`checkpoint_state` of a sharded module, on the CPU in `dtype`; empty on other ranks than the first. A
    collective, one parameter after the other."""
    own: dict[str, Tensor] = {}
    for name, tensor in merged_parameters(module, add=add):
        if writes_whole_files():
            own[name] = tensor.to("cpu", dtype).contiguous()
    return revert_weight_conversion(module, own) if own else {}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The trained parameters in full, tied ones once. Of a sharded module only on the first rank; a collective."""
    return {name: _kept(tensor) for name, tensor in _trained(module).items()}


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module in full, adapters added, tied tensors being one. Of a sharded module as `trained_state`."""
    own = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in own.items():
        first.setdefault(id(tensor), name)
    state = {name: _kept(tensor) for name, tensor in merged(module, {name: own[name] for name in first.values()})}
    tied = {name: first[id(tensor)] for name, tensor in own.items() if first[id(tensor)] != name}
    return state | {name: state[other] for name, other in tied.items()}


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _kept(tensor: Tensor) -> Tensor:
    """In full on the rank that writes, empty on the others."""
    on_disk = _on_disk(tensor)
    return on_disk if writes_whole_files() else torch.empty(0)


def _on_disk(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).cpu().contiguous()
