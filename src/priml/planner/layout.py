"""Devices that train and devices that sample, and how models are spread over them, from the backend's settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from priml.config.backend import RayBackend, tokens_per_pass
from priml.config.train import TrainConfig
from priml.planner.machine import Machine


@dataclass(frozen=True, slots=True)
class Layout:
    """The devices of a run, and what is on them."""

    ranks: int = 1
    """Devices that train."""
    replicas: int = 1
    """Copies of the sharded models; neighbouring ranks share the shards of one."""
    samplers: int = 1
    tensor_parallel: int = 1
    """Devices of one sampler."""
    colocate: bool = True
    """Samplers are on devices that train."""
    is_sharded: bool = False
    """Ray: models are in shards (FSDP2), and each sampler is a process with its own weights. Otherwise everything is
    in one process."""
    offload: bool = False
    """Shards rest in the host's memory, where the optimizer works, too."""
    spread: bool = False
    """Each rank on a node of its own."""

    @property
    def shards(self) -> int:
        """Devices that hold one copy of a model between them."""
        return self.ranks // self.replicas

    @property
    def sampling(self) -> int:
        """Devices that sample."""
        wanted = self.samplers * self.tensor_parallel
        return min(wanted, max(self.ranks, self.tensor_parallel)) if self.colocate else wanted

    @property
    def samplers_per_device(self) -> int:
        """Samplers (or parts of one) on a device that samples."""
        return -(-self.samplers * self.tensor_parallel // self.sampling)

    @property
    def devices(self) -> int:
        return max(self.ranks, self.sampling) if self.colocate else self.ranks + self.sampling


def build_layout(cfg: TrainConfig) -> Layout:
    """The layout in the settings."""
    backend = cfg.backend
    if not isinstance(backend, RayBackend):
        return Layout(tensor_parallel=cfg.sampler.devices)
    return Layout(
        ranks=backend.ranks,
        replicas=backend.replicas,
        samplers=backend.samplers,
        tensor_parallel=cfg.sampler.devices,
        colocate=backend.colocate,
        is_sharded=True,
        offload=backend.cpu_offload,
        spread=backend.placement == "spread",
    )


def pass_tokens(cfg: TrainConfig) -> int:
    """Tokens per pass. On a CPU `settle` has put a number for `auto`."""
    return tokens_per_pass(cfg.backend.micro_batch_tokens, on_cpu=False)


def settle(given: TrainConfig, machine: Machine) -> tuple[TrainConfig, tuple[str, ...]]:
    """The settings to plan, with remarks. Settings for one device, on a machine with more, are spread over all."""
    cfg = _for_cpu(given) if machine.device.name == "cpu" else given
    needed, available = build_layout(cfg).devices, machine.devices
    if needed >= available:
        return cfg, ()
    if isinstance(cfg.backend, RayBackend):
        return cfg, (f"{available - needed} of {available} devices have nothing to do",)
    backend = RayBackend(
        kind="ray",
        precision=cfg.backend.precision,
        micro_batch_tokens=cfg.backend.micro_batch_tokens,
        ranks=available,
        samplers=available // needed,  # an engine of several devices keeps them
    )
    remark = (
        f"backend.kind: local trains on one device; planned as with backend: {{kind: ray, ranks: {available}, "
        f"samplers: {backend.samplers}}}: write that to use all {available}"
    )
    return cfg.model_copy(update={"backend": backend}), (remark,)


def _for_cpu(cfg: TrainConfig) -> TrainConfig:
    tokens = tokens_per_pass(cfg.backend.micro_batch_tokens, on_cpu=True)
    return cfg.model_copy(update={"backend": cfg.backend.model_copy(update={"micro_batch_tokens": tokens})})


def layout_refusals(layout: Layout, machine: Machine) -> Iterator[str]:
    """Why the machine cannot run the layout."""
    those = "" if layout.colocate else f" and {layout.sampling} that sample (colocate: false)"
    if layout.devices > machine.devices:
        yield (
            f"backend: {layout.ranks} devices that train{those} are asked for, and the machine has {machine.devices}: "
            f"set {_fewer(layout, machine.devices)}, or plan for more with --gpus and --nodes"
        )
    if layout.spread and layout.ranks > machine.nodes:
        yield (
            f"backend.placement: spread puts each of {layout.ranks} ranks on a node of its own, and there "
            f"{'is' if machine.nodes == 1 else 'are'} {machine.nodes}: set placement: pack"
        )
    if layout.tensor_parallel > machine.per_node:
        yield (
            f"sampler.tensor_parallel: an engine over {layout.tensor_parallel} devices needs them in one node, and a "
            f"node has {machine.per_node}: set it to that or less"
        )


def _fewer(layout: Layout, devices: int) -> str:
    """Settings that fit on so many devices."""
    if layout.colocate:
        return f"backend.ranks: {devices} (and samplers to match)"
    if devices < 2:
        return "backend.ranks: 1 and colocate: true"
    ranks = min(layout.ranks, max(1, devices - layout.sampling))
    samplers = max(1, (devices - ranks) // layout.tensor_parallel)
    return f"backend.ranks: {ranks} and samplers: {samplers}, or colocate: true"
