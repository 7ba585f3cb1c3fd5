"""Low-rank adapters: small matrices that learn beside the frozen weights of a model. Only this module imports peft.

Adapters are put into the module itself, whose class, base model and head stay the same. Layers with an adapter have
peft's names (`q_proj.base_layer.weight`) in checkpoints of a run; exported models have plain names.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from priml.errors import ConfigError, ModelError
from priml.models.sharded import whole, writes_whole_files
from priml.types import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "default"
"""The name of the only adapter of a layer."""
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def import_peft() -> Any:
    """The package. It takes seconds the first time.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
        import peft.utils.transformers_weight_conversion
    except ImportError:
        raise ConfigError(
            "adapters (policy.lora, prm.lora, or a model folder that holds an adapter) need the package peft, which is "
            "not installed; type: pip install 'priml[lora]'"
        ) from None
    return peft


def add_adapters(
    module: PreTrainedModel,
    *,
    key: str,
    base: str,
    rank: int,
    alpha: float,
    targets: Literal["all-linear"] | Sequence[str],
    seed: int,
) -> None:
    """Freeze a module and put adapters beside its linear layers. At first they add exactly 0.

    Routers and the experts of a mixture of experts stay frozen, whatever peft would make of their names (`_adapted`).

    They are a function of `seed`, the same on every device. `key` is the setting they come from. `base`, the folder or
    Hub id of the module's weights, is noted in an exported adapter.

    Raises:
        ConfigError: peft is not installed.
        ModelError: `targets` names something else than linear layers, or the head.
    """
    peft = import_peft()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=_adapted(module, key, targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)  # peft draws on the CPU, wherever the weights are
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # it finds out by itself
        peft.inject_adapter_in_model(config, module, adapter_name=_ADAPTER)


def has_adapters(module: nn.Module) -> bool:
    """Whether the module has adapters of peft."""
    return "peft_config" in vars(module)


def frozen_twin(module: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the parameters, for weights that are never trained."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def merged_parameters(module: nn.Module, *, add: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The parameters under the names of a module without adapters, tied ones once; `add` the adapters to them.

    They come in full (a collective where they are sharded) and one at a time. Those with adapters are new tensors, the
    others are the module's own.
    """
    return merged(module, dict(module.named_parameters()), add=add)


def merged(module: nn.Module, tensors: Mapping[str, Tensor], *, add: bool = True) -> Iterator[tuple[str, Tensor]]:
    """`merged_parameters` of some tensors of the module, by the names it has for them."""
    layers = _layers(module)
    for name, tensor in tensors.items():
        layer, _, own = name.rpartition(".base_layer.")
        if layer in layers:
            changed = add and own == "weight"
            yield f"{layer}.{own}", _merged_weight(layers[layer], tensor) if changed else whole(tensor.detach())
        elif name.rpartition(".lora_")[0] not in layers:
            yield name, whole(tensor.detach())


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapters of a module alone, as peft writes them."""

    config: str
    """JSON."""
    tensors: Mapping[str, Tensor]
    """float32, on the CPU."""

    def write(self, folder: Path) -> None:
        """Into a folder that `peft.PeftModel.from_pretrained` and vLLM read."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(self.config, encoding="utf-8")
        save_file(dict(self.tensors), folder / _WEIGHTS)


def extract_adapter(module: nn.Module) -> Adapter | None:
    """The adapters of a module, with a note which model they belong to. A collective where they are sharded; None on
    other ranks than the first."""
    trained = {
        name: whole(parameter.detach()).cpu().contiguous()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    if not writes_whole_files():
        return None
    state = import_peft().get_peft_model_state_dict(module, trained, _ADAPTER, save_embedding_layers=False)
    config = copy.copy(vars(module)["peft_config"][_ADAPTER])
    config.inference_mode = True  # for whoever loads them to use them
    # What peft keeps in sets comes in another order in every process.
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, default=sorted)
    return Adapter(text, {f"base_model.model.{name}": tensor for name, tensor in state.items()})


def save_adapter(module: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """The adapters alone as a folder, with the tokenizer; written by the first rank."""
    adapter = extract_adapter(module)
    if adapter is not None:
        adapter.write(folder)
        tokenizer.save_pretrained(folder)


def adapter_base(source: str) -> str | None:
    """The folder or Hub id of the model that the adapters of a folder belong to; None for any other source.

    Raises:
        ModelError: the folder holds adapters, and does not say whose.
    """
    path = Path(source) / _CONFIG
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path}: not peft's note on an adapter ({error}); export the adapter again") from None
    if not base:
        raise ModelError(f"{path}: it does not name the model that the adapter belongs to (base_model_name_or_path)")
    return base


def merge_adapter(module: PreTrainedModel, source: str) -> PreTrainedModel:
    """A plain module with the adapters of a folder added to its weights, for good.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the adapters are not low-rank ones, not in safetensors, or belong to another model.
    """
    peft = import_peft()
    if not (Path(source) / _WEIGHTS).is_file():
        raise ModelError(f"{source}: no {_WEIGHTS} in it, and only safetensors are read; save the adapter again")
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it draws numbers, then replaces them
            warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = peft.PeftModel.from_pretrained(module, source)
    except (UserWarning, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"{source}: its adapter cannot be added to {type(module).__name__}: {reason}") from None
    if adapted.active_peft_config.peft_type != peft.PeftType.LORA:
        raise ModelError(f"{source}: found an adapter of type {adapted.active_peft_config.peft_type.value}, need LORA")
    plain: PreTrainedModel = adapted.merge_and_unload()
    vars(plain).pop("peft_config", None)
    return plain.requires_grad_(True)


def _layers(module: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by name."""
    if not has_adapters(module):
        return {}
    kind = import_peft().tuners.lora.LoraLayer
    return {name: part for name, part in module.named_modules() if isinstance(part, kind)}


@torch.no_grad()
def _merged_weight(layer: Any, weight: Tensor) -> Tensor:
    """W + alpha / rank * B A, in the precision of the weights; transposed where the layer keeps its weight so."""
    down, up = (whole(part[_ADAPTER].weight) for part in (layer.lora_A, layer.lora_B))
    update = (up @ down) * layer.scaling[_ADAPTER]
    return whole(weight.detach()) + (update.T if layer.fan_in_fan_out else update)


def _adapted(module: PreTrainedModel, key: str, targets: Literal["all-linear"] | Sequence[str]) -> list[str]:
    """The linear layers that get an adapter, by name.

    Not the head: an adapter of it would do nothing (see `models/forward.py`). Not what has a forward of its own, such
    as a router that returns a tuple, or a layer that rounds its weights. Not what a fused kernel reads past us.
    """
    head = module.get_output_embeddings()
    parts = dict(module.named_modules())
    linear = {name for name, part in parts.items() if _is_plain_linear(part) and part is not head}
    bypassed = {name for name in linear if _is_read_by_a_kernel(parts, name)}
    stacked = {leaf for leaf in map(_leaf, linear) if _names_experts(module, leaf)}
    adaptable = {name for name in linear - bypassed if _leaf(name) not in stacked}
    if not adaptable:
        raise ModelError(f"{key}: {type(module).__name__} has no linear layers beside its head; set {key}: null")
    if isinstance(targets, str):
        return sorted(adaptable)
    chosen: set[str] = set()
    for target in targets:
        named = {name for name in parts if name == target or name.endswith(f".{target}")}
        if not named or named - adaptable:
            found = "which no layer is called" if not named else "which is something else"
            if named & bypassed:
                found = "whose weights a fused kernel reads, so its adapter would do nothing"
            elif named & linear - adaptable:
                found = "which peft takes for experts, and those stay frozen"
            known = ", ".join(sorted(set(map(_leaf, adaptable))))
            raise ModelError(f"{key}.targets: found {target}, {found}; need linear layers but the head, of: {known}")
        chosen |= named
    return sorted(chosen)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _is_plain_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear | Conv1D) and type(part).forward in (nn.Linear.forward, Conv1D.forward)


def _is_read_by_a_kernel(parts: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a layer belongs to a state-space mixer (it has `A_log` and `D`), behind the projection of its input.

    On a GPU the kernels of Mamba take the weights of these layers and do not call them.
    """
    mixer = parts[name.rpartition(".")[0]]
    return hasattr(mixer, "A_log") and hasattr(mixer, "D") and _leaf(name) != "in_proj"


def _names_experts(module: PreTrainedModel, leaf: str) -> bool:
    """Whether peft takes a layer's name for the experts of this architecture, which transformers keeps in one tensor.

    A dense or shared layer may have that name too. An exported adapter could not name it alone.
    """
    peft = import_peft()
    config = peft.LoraConfig(target_modules=[leaf])
    try:
        peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers(config, module, None)
    except ValueError:  # one of several names of a tensor
        return True
    return not config.target_modules
