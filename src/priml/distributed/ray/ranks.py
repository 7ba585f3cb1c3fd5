"""The ranks: actors that hold the trainable roles in shards, and the group of them as the driver sees it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from priml.batch import Batch
from priml.distributed.ray.actors import BusyTime, work_in
from priml.distributed.ray.cluster import Actor, Cluster, Ref, free_address, import_ray
from priml.distributed.ray.failures import RankWatch
from priml.distributed.ray.refs import BatchRef, get_value, put_result
from priml.distributed.ray.serialize import share_tensors
from priml.errors import RunError
from priml.models.checkpoint import gathered_checkpoint, trained_state
from priml.models.lora import extract_adapter
from priml.rollout.engine import engine_dtype
from priml.rollout.weight_sync import WeightUpdate, other_weights
from priml.types import Write


@dataclass(frozen=True, slots=True)
class RankRoles:
    """What a rank works with."""

    roles: Mapping[str, Any]
    """Objects whose methods the driver calls, by name."""
    digests: Mapping[str, str]
    """sha256 of the weights of those that have any."""
    device: Mapping[str, str]
    """What the models compute on, for the manifest."""


MakeRoles = Callable[[int, int, str, Callable[[str], None]], RankRoles]
"""(rank, number of ranks, address, `report_progress`) -> its roles."""

_GLANCE_S = 0.5
"""How often a thread that waits for files looks whether the run has ended."""

Weights = Literal["current", "other", "real"]
"""`current`: those of the policy. To verify weight sync: those of another model (`other`), then all of the policy's
(`real`)."""


@dataclass(frozen=True, slots=True)
class WeightSyncSpec:
    """How the policy's weights travel to engines that verify what they were given."""

    dtype: str
    """What the engines compute in, or `auto`: what the ranks do."""
    probe: tuple[int, ...]
    """Tokens of the text that engines and ranks both read."""
    separate_adapters: bool
    """Adapters travel by themselves, the frozen weights only to verify weight sync."""


class Rank:
    """One process of the process group. Runs inside an actor."""

    def __init__(self, rank: int, size: int, cwd: str) -> None:
        work_in(cwd)
        self._rank = rank
        self._size = size
        self._roles: Mapping[str, Any] = {}
        self._writes: dict[str, list[Write]] = {}
        self._precision = ""
        self._phase = "its start"
        self._detail = ""

    def address(self) -> str:
        """Where the process group can meet, if this is rank 0."""
        return free_address()

    def build(self, make: MakeRoles, address: str) -> dict[str, Any]:
        """Join the process group and make the roles. Returns the `digests` of their weights and the `device`."""
        share_tensors()
        self._begin("joining the process group")
        made = make(self._rank, self._size, address, self._report_progress)
        self._precision = made.device["precision"]
        self._roles = made.roles
        return {"digests": made.digests, "device": made.device}

    def call(self, role: str, method: str, args: Sequence[Any], stored: bool) -> tuple[Any, float]:
        """Call a method of a role. Returns its result (None but on rank 0) and the seconds it took.

        References among the arguments are resolved. A result to be `stored` is put into the object store, and its
        reference is returned; of the batch that a role was given and returns, alone or first of several results, only
        the fields that changed are put there.
        """
        began = time.perf_counter()
        self._begin(f"{role}.{method}")
        given = [get_value(arg) for arg in args]
        result = getattr(self._roles[role], method)(*given)
        self._report_progress("done")
        if self._rank != 0:
            result = None
        elif isinstance(result, Batch) and isinstance(args[0], BatchRef):
            result = args[0].replace(given[0], result)
        elif isinstance(result, tuple) and isinstance(args[0], BatchRef):
            result = (args[0].replace(given[0], result[0]), *result[1:])
        elif stored:
            result = put_result(result)
        return result, time.perf_counter() - began

    def check_folder(self, folder: Path) -> None:
        """Raises when this rank does not see a folder of the run."""
        if not folder.is_dir():
            raise RunError(
                f"{folder}: not to be seen by rank {self._rank} on {os.uname().nodename}; with several nodes, run_dir "
                "must be on a file system that all of them share"
            )

    def stage(self, role: str, folder: Path) -> None:
        """Copy the shards of a role aside; `write` writes them."""
        self._begin(f"{role}.stage")
        self._writes[role] = self._roles[role].stage(folder)

    def write(self, role: str) -> None:
        """Write what `stage` copied aside. Other calls are answered meanwhile."""
        writes = self._writes.pop(role)
        while writes:
            writes.pop(0)()  # and let its copy go

    def gather(self, sync: WeightSyncSpec | None, weights: Weights) -> list[Ref]:
        """A reference to the policy's weights, from rank 0; nothing from the others.

        With a spec they are a `WeightUpdate`; without, the trained parameters.
        """
        self._begin("gathering weights")
        policy = self._roles["policy"]
        module = policy.weights()
        with other_weights(module) if weights == "other" else nullcontext():
            if sync is None:
                update: Any = trained_state(module)
            else:
                dtype = getattr(torch, engine_dtype(sync.dtype, self._precision))
                all_weights = weights != "current" or not sync.separate_adapters
                tensors = gathered_checkpoint(module, dtype, add=not sync.separate_adapters) if all_weights else {}
                adapter = extract_adapter(module) if sync.separate_adapters else None
                update = WeightUpdate(tensors, policy.logprobs(sync.probe), adapter)
        return [import_ray().put(update)] if self._rank == 0 else []

    def pid(self) -> int:
        """Process id, on its node. Answered at any time."""
        return os.getpid()

    def devices(self) -> list[str]:
        """The accelerators that are set aside for it, as its node numbers them. Answered at any time."""
        return [str(index) for index in import_ray().get_gpu_ids()]

    def progress(self) -> str:
        """The current or last activity of this rank. Answered at any time."""
        return f"{self._phase}, {self._detail}" if self._detail else self._phase

    def _begin(self, phase: str) -> None:
        self._phase, self._detail = phase, ""

    def _report_progress(self, what: str) -> None:
        self._detail = what


class RankGroup:
    """All ranks, as the driver sees them."""

    def __init__(
        self, cluster: Cluster, size: int, make: MakeRoles, *, timeout_s: float, sync: WeightSyncSpec | None = None
    ) -> None:
        """Start them; `wait` until they are built. `sync` says how weights travel to engines that verify them."""
        self._ray = import_ray()
        self._timeout_s = timeout_s
        self._ranks = [cluster.rank(index, Rank, index, size, os.getcwd()) for index in range(size)]
        self._watch = RankWatch(self._ranks, timeout_s)
        self._writing = threading.Lock()
        self._ended = False
        self.busy = BusyTime()
        self._make = make
        self._sync = sync

    def wait(self) -> dict[str, Any]:
        """What the roles are like: their `digests`, the `device`."""
        address = self._watch.wait_for([self._ranks[0].address.remote()])[0]
        facts = self._watch.wait_for([rank.build.remote(self._make, address) for rank in self._ranks])[0]
        self._watch.is_built = True
        return facts

    @property
    def pids(self) -> list[int]:
        """Process ids, on their nodes."""
        return self._ray.get([rank.pid.options(concurrency_group="control").remote() for rank in self._ranks])

    @property
    def size(self) -> int:
        return len(self._ranks)

    @property
    def devices(self) -> list[list[str]]:
        """The accelerators of each rank as its node numbers them."""
        return self._ray.get([rank.devices.options(concurrency_group="control").remote() for rank in self._ranks])

    def call(self, role: str, method: str, *args: object, stored: bool = False) -> Any:
        """Call a method on every rank; return the result of rank 0, or its reference if it is to be `stored`.

        Raises:
            PrimlError: what the roles raise.
            RankLostError: a rank's process ended.
        """
        return self._call(self._ranks, role, method, args, stored)

    def call_rank0(self, role: str, method: str, *args: object, stored: bool = False) -> Any:
        """The same on rank 0 alone."""
        return self._call(self._ranks[:1], role, method, args, stored)

    def check_folder(self, folder: Path) -> None:
        """Check that every rank sees a folder of the run."""
        self._watch.wait_for([rank.check_folder.remote(folder) for rank in self._ranks])

    def gather(self, weights: Weights = "current") -> Ref:
        """A reference to weights of the policy."""
        return self._watch.wait_for([rank.gather.remote(self._sync, weights) for rank in self._ranks])[0][0]

    def stage(self, role: str, folder: Path) -> None:
        """Copy the shards of a role aside, on every rank."""
        self._watch.wait_for([rank.stage.remote(role, folder) for rank in self._ranks])

    def write(self, role: str) -> None:
        """Wait until every rank has written what it copied aside of a role. For a thread beside the run's own.

        Raises:
            RunError: a rank could not, or is behind the others by more than a collective may be, or the run has ended.
            RankLostError: a rank's process ended.
        """
        with self._writing:
            refs = [rank.write.options(concurrency_group="writing").remote(role) for rank in self._ranks]
            pending, news = refs, time.monotonic()
            while pending:
                if self._ended:
                    raise RunError(f"the run ended before its ranks had written their shards of {role}")
                done, pending = self._ray.wait(pending, num_returns=1, timeout=_GLANCE_S)
                try:
                    self._ray.get(done)
                except self._ray.exceptions.RayError as error:
                    raise self._watch.explain(error, refs) from None
                if done:
                    news = time.monotonic()
                elif len(pending) < len(refs) and time.monotonic() - news > self._timeout_s:
                    behind = ", ".join(str(refs.index(ref)) for ref in pending)
                    raise RunError(
                        f"rank {behind} did not write its shards of {role} within {self._timeout_s:g} s of the others; "
                        "look at that rank's node and its way to the disk; raise backend.collective_timeout if it was "
                        "only slow"
                    )

    def close(self) -> None:
        """Wait for no files any more: the ranks are about to end."""
        self._ended = True
        with self._writing:
            pass  # from here on no other thread is in Ray

    def _call(self, ranks: Sequence[Actor], role: str, method: str, args: Sequence[object], stored: bool) -> Any:
        given = self._ray.put(args)  # once for all of them
        results = self._watch.wait_for([rank.call.remote(role, method, given, stored) for rank in ranks])
        for _, seconds in results:
            self.busy.add(seconds)
        return results[0][0]
