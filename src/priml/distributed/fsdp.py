"""Models sharded over the ranks of a process group with PyTorch's FSDP2: fp32 masters, bf16 or fp32 compute.

Rank 0 has a model's weights; the other ranks have its architecture on the meta device. A unit (a transformer block; or
the embeddings with last norm and head) is sent to all ranks just before it is sharded. So no rank but the first ever
holds more than one whole unit.

`set_model_state_dict` with `broadcast_from_rank0` does not replace this. It sends what a state dict holds: with torch
2.13 the rotary frequencies, a buffer that is never saved, did not arrive. Ties would have to be known before it, too,
since files may tie weights otherwise than the config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from priml.errors import ConfigError, ModelError
from priml.models.forward import TokenModel


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the weights, gradients and optimizer state of each model are spread over the ranks."""

    mesh: DeviceMesh
    """One dimension: shards. Two: replicas of groups of shards (HSDP)."""
    precision: str
    offload: bool = False
    """Shards stay in CPU memory, and the optimizer works there."""

    def __call__(self, model: TokenModel) -> None:
        """Shard a model in place. Each block is a unit; the rest (embeddings, last norm, head) is another one.

        All ranks get the weights and buffers of rank 0. Gradients are summed over the ranks, not averaged, because each
        rank's loss has the denominator of the whole mini-batch.
        """
        layout = model.process_group.broadcast_from_rank0(lambda: _layout(model.unit))
        if model.process_group.rank != 0:
            _take_layout(model.unit, layout)
        mixed = MixedPrecisionPolicy()
        if self.precision == "bf16":
            mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        filled: set[nn.Module] = set()
        for part in model.unit.modules():
            if part in model.full_precision:
                self._shard(part, filled, MixedPrecisionPolicy())
        for block in _blocks(model.module):
            self._shard(block, filled, mixed)
        # By default the root's weights stay whole until a backward pass, and scoring has none.
        self._shard(model.unit, filled, mixed, reshard=True)
        for part in model.unit.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)  # the other way to a factor of 1 exists in NCCL alone
                # Ranks may ask different experts.
                part.set_reduce_scatter_unused_params(True, recurse=False)

    def _shard(
        self, part: nn.Module, filled: set[nn.Module], mixed: MixedPrecisionPolicy, *, reshard: bool | None = None
    ) -> None:
        self._fill(part, filled)
        offload = CPUOffloadPolicy() if self.offload else OffloadPolicy()
        fully_shard(part, mesh=self.mesh, offload_policy=offload, mp_policy=mixed, reshard_after_forward=reshard)

    @torch.no_grad()
    def _fill(self, part: nn.Module, filled: set[nn.Module]) -> None:
        """Give the modules of a part that are not `filled` yet the tensors of rank 0. A collective."""
        sent: dict[Tensor, Tensor] = {}
        for module in part.modules():
            if module in filled:
                continue
            filled.add(module)
            for name, tensor in _own_tensors(module):
                if tensor not in sent:  # tied ones stay one
                    sent[tensor] = _broadcast(tensor, torch.device(self.mesh.device_type))
                setattr(module, name, sent[tensor])


def sharding(*, ranks: int, replicas: int, device: torch.device, precision: str, offload: bool) -> Sharding:
    """The sharding over the default process group. Neighbouring ranks share the shards of one replica.

    Raises:
        ConfigError: shards cannot be offloaded where there is no accelerator.
    """
    if offload and device.type == "cpu":
        raise ConfigError(
            "backend.cpu_offload: found true, but the models compute on the CPU, so there is nothing to offload from; "
            "set backend.cpu_offload: false, or backend.device: cuda"
        )
    if replicas == 1:
        mesh = init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(device.type, (replicas, ranks // replicas), mesh_dim_names=("replica", "shard"))
    return Sharding(mesh=mesh, precision=precision, offload=offload)


_Layout: TypeAlias = dict[str, tuple[int, torch.Size, torch.dtype, bool]]
"""Of each tensor by name: its number (tied names share one), shape, type, and whether it is trained."""


def _layout(unit: nn.Module) -> _Layout:
    numbers: dict[Tensor, int] = {}
    return {
        name: (numbers.setdefault(tensor, len(numbers)), tensor.shape, tensor.dtype, tensor.requires_grad)
        for name, tensor in _tensors(unit).items()
    }


def _take_layout(unit: nn.Module, layout: _Layout) -> None:
    """Tie and type the empty tensors of a unit as rank 0 does: files may tie weights otherwise than the config.

    Raises:
        ModelError: the names differ.
    """
    ours = _tensors(unit)
    if ours.keys() != layout.keys():
        raise ModelError(
            f"{type(unit).__name__}: tensor {min(ours.keys() ^ layout.keys())} is made by the model's files or by its "
            "config alone, so the ranks that read the config cannot take it over; set backend.ranks: 1"
        )
    made: dict[int, Tensor] = {}
    for name, (number, shape, dtype, learns) in layout.items():
        if number not in made:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            made[number] = nn.Parameter(empty, learns) if isinstance(ours[name], nn.Parameter) else empty
        module, _, own_name = name.rpartition(".")
        setattr(unit.get_submodule(module), own_name, made[number])


def _tensors(unit: nn.Module) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}": tensor for prefix, module in unit.named_modules() for name, tensor in _own_tensors(module)
    }


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, including buffers that are not saved."""
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    return [*own, *module.named_buffers(recurse=False, remove_duplicate=False)]


def _broadcast(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor of rank 0 on this rank's device."""
    on_device = tensor.detach().to(device) if dist.get_rank() == 0 else torch.empty_like(tensor, device=device)
    on_device = on_device.contiguous()
    if on_device.numel():
        dist.broadcast(on_device.view(torch.uint8) if tensor.dtype == torch.bool else on_device, src=0)
    return nn.Parameter(on_device, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else on_device


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the list of modules with most of the weights."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=[]))
