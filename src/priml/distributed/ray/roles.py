"""The trainable roles, the estimator and the records of a step, as the driver has them: each call goes to the ranks.

They fit the protocols of `priml.learners.base` and `priml.training`, with references in the place of batches and
tensors (`refs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from priml.batch import Batch
from priml.distributed.ray.cluster import Ref
from priml.distributed.ray.ranks import RankGroup
from priml.distributed.ray.refs import AdvantagesRef, BatchRef, TensorRef, get_value
from priml.distributed.ray.trajectories import fetch_trajectories
from priml.learners.base import CriticReport, NoModel, PolicyReport, PrmReport
from priml.training.collect import FilterStatus
from priml.training.records import FinishedStep, Records
from priml.types import Group, Write


@dataclass(frozen=True, slots=True)
class RayWeights:
    """The weights of the ranks in the object store, for samplers in other processes."""

    ref: Ref


class _RemoteRole:
    """What all trainable roles have in common."""

    def __init__(self, ranks: RankGroup, name: str) -> None:
        self._ranks = ranks
        self._name = name

    def digest(self) -> str:
        return self._ranks.call(self._name, "digest")

    def stage(self, folder: Path) -> list[Write]:
        self._ranks.check_folder(folder.resolve())
        self._ranks.stage(self._name, folder.resolve())
        return [partial(self._ranks.write, self._name)]

    def load(self, folder: Path) -> None:
        """Restore it, with as many ranks as there are now."""
        self._ranks.check_folder(folder.resolve())
        self._ranks.call(self._name, "load", folder.resolve())

    def export(self, folder: Path) -> None:
        self._ranks.call(self._name, "export", folder.resolve())


class RemotePolicy(_RemoteRole):
    """The `Policy` of the ranks."""

    def score(self, batch: BatchRef) -> BatchRef:
        return self._ranks.call(self._name, "score", batch)

    def update(self, batch: BatchRef, advantages_BT: TensorRef) -> tuple[BatchRef, PolicyReport]:
        return self._ranks.call(self._name, "update", batch, advantages_BT)

    def weights(self) -> RayWeights:
        return RayWeights(self._ranks.gather())

    def verification_weights(self) -> list[RayWeights]:
        """Other weights, then the real ones (`rollout.weight_sync.verification_updates`)."""
        return [RayWeights(self._ranks.gather("other")), RayWeights(self._ranks.gather("real"))]


class RemotePrm(_RemoteRole):
    """The `Prm` of the ranks."""

    def update(self, batch: BatchRef) -> PrmReport | None:
        return self._ranks.call(self._name, "update", batch)

    def rewards(self, batch: BatchRef) -> TensorRef:
        return self._ranks.call(self._name, "rewards", batch, stored=True)


class RemoteCustomPrm(NoModel):
    """A user's process reward model, on rank 0."""

    def __init__(self, ranks: RankGroup) -> None:
        self._ranks = ranks

    def update(self, batch: BatchRef) -> None: ...

    def rewards(self, batch: BatchRef) -> TensorRef:
        return self._ranks.call_rank0("prm", "rewards", batch, stored=True)


class RemoteCritic(_RemoteRole):
    """The `Critic` of the ranks."""

    def estimate_values(self, batch: BatchRef) -> BatchRef:
        return self._ranks.call(self._name, "estimate_values", batch)

    def update(self, batch: BatchRef, returns_BT: TensorRef | None) -> CriticReport:
        return self._ranks.call(self._name, "update", batch, returns_BT)


class RemoteAdvantages:
    """The `AdvantageEstimator` of rank 0."""

    def __init__(self, ranks: RankGroup) -> None:
        self._ranks = ranks

    def estimate(self, batch: BatchRef, process: TensorRef | None, process_factor: float) -> AdvantagesRef:
        whole = self._ranks.call_rank0("advantages", "estimate", batch, process, process_factor, stored=True)
        return AdvantagesRef(TensorRef(whole.ref, "advantages_BT"), TensorRef(whole.ref, "returns_BT"))


class RemoteRecords:
    """The `Records` of rank 0."""

    def __init__(self, ranks: RankGroup) -> None:
        self._ranks = ranks

    def collate(self, groups: Sequence[Group], step: int) -> BatchRef:
        return self._ranks.call_rank0("records", "collate", [_without_tests(g) for g in groups], step, stored=True)

    def save(self, path: Path, done: FinishedStep, sources: Sequence[str] = ()) -> dict[str, float]:
        self._ranks.check_folder(path.resolve().parent)
        light = replace(done, groups=[(_without_tests(group), status) for group, status in done.groups])
        return self._ranks.call_rank0("records", "save", path.resolve(), light, sources)

    def save_untrained(self, path: Path, step: int, groups: Sequence[tuple[Group, FilterStatus]]) -> None:
        self._ranks.check_folder(path.resolve().parent)
        light = [(_without_tests(group), status) for group, status in groups]
        self._ranks.call_rank0("records", "save_untrained", path.resolve(), step, light)


class RankRecords:
    """The `Records` inside rank 0, which `RemoteRecords` calls: it fetches what the references stand for."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        return self._records.collate(fetch_trajectories(groups), step)

    def save(self, path: Path, done: FinishedStep, sources: Sequence[str] = ()) -> dict[str, float]:
        groups = fetch_trajectories(group for group, _ in done.groups)
        local = replace(
            done,
            groups=[(group, status) for group, (_, status) in zip(groups, done.groups, strict=True)],
            batch=get_value(done.batch),
            process=get_value(done.process),
            advantages_BT=get_value(done.advantages_BT),
        )
        return self._records.save(path, local, sources)

    def save_untrained(self, path: Path, step: int, groups: Sequence[tuple[Group, FilterStatus]]) -> None:
        local = fetch_trajectories(group for group, _ in groups)
        self._records.save_untrained(path, step, list(zip(local, (status for _, status in groups), strict=True)))


def _without_tests(group: Group) -> Group:
    """The tests of a problem may be megabytes, and nothing on the ranks reads them."""
    return replace(group, prompt=replace(group.prompt, problem=replace(group.prompt.problem, tests=None)))
