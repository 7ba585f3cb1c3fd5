"""Models sharded over the ranks of a team with PyTorch's FSDP2: fp32 masters, bf16 or fp32 compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from priml.errors import ConfigError
from priml.models.forward import TokenModel


@dataclass(frozen=True, slots=True)
class Sharding:
    """How each model's weights, gradients and optimizer state are spread over the ranks."""

    mesh: DeviceMesh
    """One dimension: shards. Two: replicas of groups of shards (HSDP)."""
    precision: str
    offload: bool = False
    """Shards rest in the CPU's memory, where the optimizer works, too."""

    def __call__(self, model: TokenModel) -> None:
        """Shard a model in place: each block a unit, and one of all the rest (embeddings, last norm, head).

        Gradients are summed over the ranks, not averaged: each rank's loss has the denominator of the whole mini-batch.
        """
        for part in model.unit.modules():
            if part in model.full_precision:
                fully_shard(part, mesh=self.mesh, offload_policy=self._offload)
        for block in _blocks(model.module):
            fully_shard(block, mesh=self.mesh, mp_policy=self._mixed, offload_policy=self._offload)
        # Resharded after every forward: the default keeps the root's weights whole until a backward pass comes, and a
        # pass that only scores has none.
        fully_shard(
            model.unit, mesh=self.mesh, mp_policy=self._mixed, offload_policy=self._offload, reshard_after_forward=True
        )
        for part in model.unit.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)  # the other way to a factor of 1 exists in NCCL alone
                # Ranks may ask different experts.
                part.set_reduce_scatter_unused_params(True, recurse=False)

    @property
    def _mixed(self) -> MixedPrecisionPolicy:
        if self.precision != "bf16":
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    @property
    def _offload(self) -> OffloadPolicy:
        return CPUOffloadPolicy() if self.offload else OffloadPolicy()


def sharding(*, ranks: int, replicas: int, device: torch.device, precision: str, offload: bool) -> Sharding:
    """The sharding over the default process group; ranks that are neighbours share the shards of one replica.

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


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks: the list of modules that holds most of the weights."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return list(max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()), default=[]))
