"""The ranks: actors that hold the trainable roles in shards, and the driver's stand-ins for those roles.

What a role says of each token stays in the object store, put there by the first rank, and the ranks of a node look at
one copy. The driver has numbers per response, and references.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from priml.batch import Batch
from priml.distributed.ray.cluster import Cluster, free_address, get_results, import_ray
from priml.distributed.ray.refs import fetched, held, on_driver
from priml.distributed.ray.serialize import packed
from priml.distributed.ray.utilization import BusyTime
from priml.errors import PrimlError, RankLostError, RunError
from priml.learners.base import CriticReport, PolicyReport, PrmReport, ProcessRewards
from priml.models.checkpoint import gathered_checkpoint, trained_state
from priml.models.lora import extract_adapter
from priml.rollout.engine import engine_dtype
from priml.rollout.weight_sync import WeightUpdate, other_weights
from priml.types import Write

Make = Callable[[int, int, str, Callable[[str], None]], Mapping[str, Any]]
"""From rank, number of ranks, address and what is to be told of its progress, to the roles by name."""

_ANSWER_S = 20.0
"""How long a rank that still lives may take to say so."""

_GLANCE_S = 0.5
"""How often who waits for files looks whether the run has ended."""


VerifiedWeights = Literal["other", "real"]
"""What `verify_weight_sync` is given: the weights of another model, or the policy's own."""


@dataclass(frozen=True, slots=True)
class WeightSyncSpec:
    """How the policy's weights travel to engines that prove what they were given."""

    dtype: str
    """What the engines compute in, or `auto`: what the ranks do."""
    probe: tuple[int, ...]
    """Tokens of the text that engines and ranks both read."""
    separate_adapters: bool
    """Adapters travel by themselves, the frozen weights for `verify_weight_sync` alone."""


class Rank:
    """One process of the process group. Runs inside an actor."""

    def __init__(self, rank: int, size: int, cwd: str) -> None:
        enter(cwd)
        self._rank = rank
        self._size = size
        self._roles: Mapping[str, Any] = {}
        self._writes: dict[str, list[Write]] = {}
        self._precision = ""
        self._phase = "its start"
        self._progress = ""

    def address(self) -> str:
        """Where the process group can meet, if it is here."""
        return free_address()

    def build(self, make: Make, address: str) -> dict[str, Any]:
        """Join the process group, make the roles; what each is like: `digests` of their weights, and the `device`."""
        self._phase = "joining the process group"
        made = make(self._rank, self._size, address, self._report_progress)
        self._precision = made["device"]["precision"]
        self._roles = {name: role for name, role in made.items() if name != "device"}
        models = {name: role for name, role in self._roles.items() if name != "records"}
        return {"digests": {name: role.digest() for name, role in models.items()}, "device": made["device"]}

    def call(self, role: str, method: str, args: Sequence[Any]) -> tuple[Any, float]:
        """A method of a role: what it returns (on the first rank; nothing on the others), and the seconds it took.

        What it is given and returns of each token is held (`held.py`). Of a batch that scoring returns, those fields
        by name that it changed.
        """
        began = time.perf_counter()
        self._phase, self._progress = f"{role}.{method}", ""
        folder = args[0].parent if method == "keep" else args[0] if method in ("stage", "load") else None
        if folder and not folder.is_dir():
            raise RunError(
                f"{folder}: not to be seen by rank {self._rank} on {os.uname().nodename}; with several nodes, run_dir "
                "must be on a file system that all of them share"
            )
        given = [fetched(arg) for arg in args]
        result = getattr(self._roles[role], method)(*given)
        if method == "stage":
            self._writes[role], result = result, None
        if method in ("score", "estimate_values"):
            changed = (f.name for f in fields(Batch) if getattr(result, f.name) is not getattr(given[0], f.name))
            result = {name: getattr(result, name) for name in changed}
        self._progress = "done"
        return (held(result) if self._rank == 0 else None), time.perf_counter() - began

    def apply(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, float]:
        """What a function of tensors returns, and the seconds it took."""
        began = time.perf_counter()
        self._phase, self._progress = function.__name__, ""
        result = function(*map(fetched, args), **{name: fetched(value) for name, value in kwargs.items()})
        self._progress = "done"
        return held(result), time.perf_counter() - began

    def write(self, role: str) -> None:
        """Write what was copied aside by the role's `stage`; beside other calls."""
        writes = self._writes.pop(role)
        while writes:
            writes.pop(0)()  # its copy is let go of

    def gather(self, wire: WeightSyncSpec | None, verified: VerifiedWeights | None) -> list[Any]:
        """The policy's weights, put into the object store by the first rank: along a wire as a `WeightUpdate`, else
        those that are trained."""
        self._phase, self._progress = "gathering weights", ""
        policy = self._roles["policy"]
        module = policy.weights().module()
        with other_weights(module) if verified == "other" else nullcontext():
            if wire is None:
                travelling: Any = trained_state(module)
            else:
                dtype = getattr(torch, engine_dtype(wire.dtype, self._precision))
                all_weights = verified is not None or not wire.separate_adapters
                tensors = gathered_checkpoint(module, dtype, add=not wire.separate_adapters) if all_weights else {}
                adapter = extract_adapter(module) if wire.separate_adapters else None
                travelling = WeightUpdate(tensors, policy.logprobs(wire.probe), adapter)
        return [import_ray().put(packed(travelling))] if self._rank == 0 else []

    def pid(self) -> int:
        """Process id, on its node; answered at any time."""
        return os.getpid()

    def devices(self) -> list[str]:
        """The accelerators that are set aside for it, as its node numbers them; answered at any time."""
        return [str(index) for index in import_ray().get_gpu_ids()]

    def doing(self) -> str:
        """What this rank does, or did last; answered at any time."""
        return f"{self._phase}, {self._progress}" if self._progress else self._phase

    def _report_progress(self, what: str) -> None:
        self._progress = what


class RankGroup:
    """All ranks, as the driver sees them."""

    def __init__(
        self, cluster: Cluster, size: int, make: Make, *, timeout_s: float, wire: WeightSyncSpec | None = None
    ) -> None:
        """Start them; `wait` until they are built. Weights travel along the `wire` if there is one."""
        self._ray = import_ray()
        self._timeout_s = timeout_s
        self._ranks = [cluster.rank(index, Rank, index, size, os.getcwd()) for index in range(size)]
        self._writing = threading.Lock()
        self._ended = False
        self._is_built = False
        self.busy = BusyTime()
        self._make = make
        self._wire = wire

    def wait(self) -> dict[str, Any]:
        """What the roles are like: their `digests`, the `device`."""
        address = self._results([self._ranks[0].address.remote()])[0]
        facts = self._results([rank.build.remote(self._make, address) for rank in self._ranks])[0]
        self._is_built = True
        return facts

    @property
    def pids(self) -> list[int]:
        """Process ids, on their nodes."""
        return self._ray.get([rank.pid.options(concurrency_group="control").remote() for rank in self._ranks])

    @property
    def size(self) -> int:
        """How many."""
        return len(self._ranks)

    def call(self, role: str, method: str, *args: Any) -> Any:
        """The method on every rank; what the first one returns.

        Raises:
            PrimlError: what the roles raise.
            RankLostError: a rank's process ended.
        """
        return self._asked(self._ranks, role, method, args)

    def call_rank0(self, role: str, method: str, *args: Any) -> Any:
        """The method on the first rank alone. Raises as `call` does."""
        return self._asked(self._ranks[:1], role, method, args)

    def apply(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function of held tensors returns, on the first rank. Raises as `call` does."""
        return self._received([self._ranks[0].apply.remote(function, args, kwargs)])

    def gather(self, verified: VerifiedWeights | None = None) -> Any:
        """A reference to the policy's weights, or to those of a verification."""
        return self._results([rank.gather.remote(self._wire, verified) for rank in self._ranks])[0][0]

    @property
    def devices(self) -> list[list[str]]:
        """The accelerators of each rank as its node numbers them."""
        return self._ray.get([rank.devices.options(concurrency_group="control").remote() for rank in self._ranks])

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
                    raise self._explained(error, refs) from None
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

    def _asked(self, ranks: Sequence[Any], role: str, method: str, args: Sequence[Any]) -> Any:
        given = self._ray.put(args)  # once for all of them
        return self._received([rank.call.remote(role, method, given) for rank in ranks])

    def _received(self, refs: Sequence[Any]) -> Any:
        """What the first of the answers holds."""
        answers = self._results(refs)
        for _, seconds in answers:
            self.busy.add(seconds)
        return on_driver(answers[0][0], self.apply)

    def _results(self, refs: Sequence[Any]) -> list[Any]:
        return get_results(
            list(refs),
            watch=lambda error: self._explained(error, refs),
            quiet_s=2 * self._timeout_s,  # a collective that hangs has a better message by then
            check=self._check_answers,
        )

    def _check_answers(self) -> None:
        """A rank may take its time; once it has been built, it must say that it does.

        Raises:
            RunError: one does not answer.
        """
        if not self._is_built:
            return
        progress, lost = self._progress_of_ranks()
        silent = [str(rank) for rank in range(self.size) if rank not in progress and rank not in lost]
        if silent:
            heard = "; ".join(f"rank {rank} {what}" for rank, what in progress.items())
            others = f" (the others: {heard})" if heard else ""
            raise RunError(
                f"rank {', '.join(silent)} does not answer{others}. Look at the logs of that rank's node; go on with: "
                "priml train RUN_DIR"
            )

    def _explained(self, error: Exception, refs: Sequence[Any]) -> Exception:
        """A failure of one rank often shows on another one first: ask all of them."""
        progress, lost = self._progress_of_ranks()
        if lost:
            others = "; ".join(f"rank {rank}: {what}" for rank, what in progress.items())
            return RankLostError(
                f"rank {', '.join(map(str, lost))} of {len(self._ranks)} was lost: its process ended"
                + (f" (the others were at: {others})" if others else "")
            )
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, PrimlError):
            return cause
        if not any(word in str(cause).lower() for word in ("timed out", "timeout")):
            return RunError(f"a rank failed: {type(cause).__name__}: {_last_line(cause)}")
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=1)
        behind = [rank for rank, ref in enumerate(refs) if ref not in ready]
        waited = "; ".join(f"rank {rank} {progress.get(rank, 'does not answer')}" for rank in range(len(refs)))
        named = f"rank {', '.join(map(str, behind))}" if behind else "some rank"
        return RunError(
            f"{named} did not join the others within {self._timeout_s:g} s. Last heard of: {waited}. Look at the logs "
            "of that rank's node; raise backend.collective_timeout if it was only slow; go on with: priml train RUN_DIR"
        )

    def _progress_of_ranks(self) -> tuple[dict[int, str], list[int]]:
        """What each rank does, and who has ended."""
        asked = [rank.doing.options(concurrency_group="control").remote() for rank in self._ranks]
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)
        progress: dict[int, str] = {}
        lost: list[int] = []
        for rank, ref in enumerate(asked):
            if ref not in ready:
                continue
            try:
                progress[rank] = self._ray.get(ref)
            except self._ray.exceptions.RayActorError:
                lost.append(rank)
        return progress, lost


class RayWeights:
    """A `WeightSource` for samplers in other processes: a reference into the object store."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def module(self) -> Any:
        """There is none here.

        Raises:
            RunError: always; samplers in this process need the local backend.
        """
        raise RunError("the policy's weights are in shards on the ranks; a sampler in this process cannot read them")


class _Remote:
    """What all trainable roles can do."""

    def __init__(self, ranks: RankGroup, name: str) -> None:
        self._ranks = ranks
        self._name = name

    def digest(self) -> str:
        """sha256 of the weights, as one process would give it."""
        return self._ranks.call(self._name, "digest")

    def stage(self, folder: Path) -> list[Write]:
        """Each rank its shards."""
        self._ranks.call(self._name, "stage", folder.resolve())
        return [partial(self._ranks.write, self._name)]

    def load(self, folder: Path) -> None:
        """Restore them, with as many ranks as there are now."""
        self._ranks.call(self._name, "load", folder.resolve())

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, by the first rank."""
        self._ranks.call(self._name, "export", folder.resolve())


class RemotePolicy(_Remote):
    """The `Policy` of the ranks."""

    def score(self, batch: Batch) -> Batch:
        """The batch with the policy's scores."""
        return replace(batch, **self._ranks.call(self._name, "score", batch))

    def update(self, batch: Batch, advantages_BT: Tensor) -> PolicyReport:
        """One pass of policy-gradient steps over the batch."""
        return self._ranks.call(self._name, "update", batch, advantages_BT)

    def weights(self) -> RayWeights:
        """A reference to the newest weights."""
        return RayWeights(self._ranks.gather())

    def verification_weights(self) -> list[RayWeights]:
        """References to other weights and to the real ones (`rollout.weight_sync.verification_updates`)."""
        return [RayWeights(self._ranks.gather("other")), RayWeights(self._ranks.gather("real"))]


class RemotePrm(_Remote):
    """The `Prm` of the ranks."""

    def update(self, batch: Batch) -> PrmReport | None:
        """Learn from the batch's outcomes."""
        return self._ranks.call(self._name, "update", batch)

    def rewards(self, batch: Batch) -> ProcessRewards:
        """Token rewards of the batch, after `update` has seen it."""
        return self._ranks.call(self._name, "rewards", batch)


class RemoteCritic(_Remote):
    """The `Critic` of the ranks."""

    def estimate_values(self, batch: Batch) -> Batch:
        """The batch with the critic's values."""
        return replace(batch, **self._ranks.call(self._name, "estimate_values", batch))

    def update(self, batch: Batch, returns_BT: Tensor | None) -> CriticReport | None:
        """Learn to predict the returns."""
        return self._ranks.call(self._name, "update", batch, returns_BT)


def enter(cwd: str) -> None:
    """Work where the driver does, if that place exists here: settings may hold relative paths."""
    if Path(cwd).is_dir():
        os.chdir(cwd)


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1]
