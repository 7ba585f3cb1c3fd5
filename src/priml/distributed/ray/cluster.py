"""Ray itself: starting or joining a cluster, reserving room for the actors of a run, and leaving."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from priml.errors import ConfigError, RankLostError

if TYPE_CHECKING:  # Ray is optional
    from ray import ObjectRef

Ref: TypeAlias = "ObjectRef[Any]"


class ActorMethod(Protocol):
    """A method of an actor, as other processes have it."""

    def remote(self, *args: object) -> Any:
        """Call it: a reference to the result, or several with `options(num_returns=...)`."""
        ...

    def options(self, **options: object) -> ActorMethod: ...


class Actor(Protocol):
    """An actor, as other processes have it."""

    def __getattr__(self, name: str) -> ActorMethod: ...


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU asked for, none to be seen
    "RAY_worker_niceness": "0",  # 15 by default: anything else on the machine would go first
}
_READY_S = 300.0
"""How long a cluster that has the room may take to reserve it."""


def import_ray() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "backend.kind: ray needs the package ray, which is not installed; type: pip install 'priml[cluster]', "
            "or set backend.kind: local"
        ) from None


@dataclass(frozen=True, slots=True)
class ClusterTopology:
    """The processes of a run."""

    ranks: int
    samplers: int
    verifiers: int
    colocate: bool
    """Samplers on the devices of the ranks."""
    sampler_devices: int
    """That each sampler is spread over."""
    spread: bool
    """Each rank on a node of its own."""


class Cluster:
    """A Ray cluster with room for a run: a bundle for each rank, for each sampler that is not colocated, and for each
    verifier."""

    def __init__(self, topology: ClusterTopology, *, address: str | None, device: str) -> None:
        """Start Ray here, or join the cluster at `address` (or RAY_ADDRESS); `device` is `auto`, `cpu` or `cuda`.

        Raises:
            ConfigError: Ray is missing, the cluster cannot be joined, or has not the room.
        """
        self._ray = import_ray()
        self._topology = topology
        self._groups: list[Any] = []
        separate = 0 if topology.colocate else topology.samplers * topology.sampler_devices
        self._owned = not self._ray.is_initialized()
        if self._owned:
            self._join(address, cpus=topology.ranks + separate + topology.verifiers)
        found = self._ray.cluster_resources()
        self.on_gpu = device == "cuda" or (device == "auto" and found.get("GPU", 0) > 0)
        gpu = {"GPU": 1} if self.on_gpu else {}
        needed = {"CPU": topology.ranks + separate + topology.verifiers} | dict.fromkeys(gpu, topology.ranks + separate)
        short = [f"{count:g} {name}s (it has {found.get(name, 0):g})" for name, count in needed.items()]
        if any(found.get(name, 0) < count for name, count in needed.items()):
            self.close()
            raise ConfigError(
                f"backend: {topology.ranks} ranks, {topology.samplers} samplers and {topology.verifiers} verifiers "
                f"need {' and '.join(short)}; lower backend.ranks, samplers or verifiers, or add nodes to the cluster"
            )
        trainers = [{"CPU": 1} | gpu for _ in range(topology.ranks)]
        engines = [dict.fromkeys(("CPU", *gpu), topology.sampler_devices) for _ in range(topology.samplers)]
        self._group = self._ray.util.placement_group(
            trainers if topology.colocate else trainers + engines,
            strategy="STRICT_SPREAD" if topology.spread else "PACK",
        )
        self._verifiers = self._ray.util.placement_group([{"CPU": 1}] * topology.verifiers, strategy="SPREAD")
        self._groups = [self._group, self._verifiers]
        if not all(group.wait(_READY_S) for group in self._groups):
            self.close()
            raise ConfigError(
                f"backend.placement: the cluster has the processors for {needed['CPU']} places, but not "
                + ("on as many nodes; set backend.placement: pack" if topology.spread else "free; wait for other jobs")
            )

    def rank(self, index: int, actor: type, *args: object) -> Actor:
        """An actor in the bundle of a rank, of which it takes the larger part.

        Its calls run one after the other. Calls of the groups `control` and `writing` run beside them, one of each.
        """
        return self._start(index, 0.5, actor, args, concurrency_groups={"control": 1, "writing": 1})

    def sampler(self, index: int, actor: type, *args: object, devices: Sequence[Sequence[str]]) -> Actor:
        """An actor for a sampler, in the bundle of a rank or in its own.

        `devices` are those of each rank. The actor's last argument is the devices to use where Ray cannot choose them.
        """
        topology = self._topology
        if self.must_choose_devices:  # Ray gives no shares of several devices: take a share of the first
            hosts = self.hosts(index)
            used = [device for rank in hosts for device in devices[rank]]
            return self._start(hosts[0], 0.4, actor, (*args, used))
        if topology.colocate:
            neighbours = -(-topology.samplers // topology.ranks)
            return self._start(index % topology.ranks, round(0.4 / neighbours, 3), actor, (*args, ()))
        share = 0.9 if topology.sampler_devices == 1 else float(topology.sampler_devices)
        return self._start(topology.ranks + index, share, actor, (*args, ()))

    @property
    def must_choose_devices(self) -> bool:
        """Whether a sampler is spread over the devices of several ranks: Ray gives a device to one process."""
        return self._topology.colocate and self._topology.sampler_devices > 1

    def hosts(self, index: int) -> list[int]:
        """The ranks whose devices a colocated sampler shares.

        Raises:
            ConfigError: they are not on one node.
        """
        each = self._topology.sampler_devices
        hosts = list(range(index * each, (index + 1) * each))
        placed = self._ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        if len({placed[rank] for rank in hosts}) > 1:
            raise ConfigError(
                f"sampler.tensor_parallel: ranks {hosts[0]} to {hosts[-1]} were placed on several nodes, and engine "
                f"{index} needs their devices in one; use a tensor_parallel that divides the GPUs of a node, set "
                "backend.placement: pack, or backend.colocate: false"
            )
        return hosts

    def verifier(self, actor: type, *args: object, threads: int) -> Actor:
        """An actor for a verifier, in whichever bundle is free."""
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._verifiers)
        made = self._ray.remote(num_cpus=1, scheduling_strategy=strategy, max_concurrency=threads)(actor)
        return made.remote(*args)

    @property
    def nodes(self) -> int:
        """Number of nodes that the ranks are on."""
        placed = self._ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        return len({placed[bundle] for bundle in range(self._topology.ranks)})

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._owned:
            self._ray.shutdown()
            return
        for group in self._groups:
            self._ray.util.remove_placement_group(group)

    def _start(self, bundle: int, share: float, actor: type, args: Sequence[object], **options: object) -> Actor:
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=bundle
        )
        gpus = share if self.on_gpu else 0
        made = self._ray.remote(num_cpus=share, num_gpus=gpus, scheduling_strategy=strategy, **options)(actor)
        return made.remote(*args)

    def _join(self, address: str | None, *, cpus: int) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None:
            options |= {"num_cpus": max(os.cpu_count() or 1, cpus), "include_dashboard": False}
        try:
            self._ray.init(address=address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"backend.address: no Ray cluster could be joined at {address} ({reason}); start one with `ray start "
                "--head`, or leave the address out to start Ray on this machine alone"
            ) from None


def free_address() -> str:
    """Where the other ranks can find this process: `tcp://HOST:PORT`."""
    host = import_ray().util.get_node_ip_address()
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return f"tcp://{host}:{probe.getsockname()[1]}"


def fetch(ref: Ref | Sequence[Ref]) -> Any:
    """An object of the store; of a list of references, all of them. Raises what the call that makes it raised.

    Raises:
        RankLostError: the process or the node that had it was lost. The step can be done again.
    """
    ray = import_ray()
    try:
        return ray.get(ref)
    except ray.exceptions.ObjectLostError:
        raise RankLostError("what this step sampled was lost with the process or the node that held it") from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
