"""The records of a step, made by the first rank: it is where the tokens of a step come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from priml.batch import Batch
from priml.distributed.ray.completions import brought
from priml.distributed.ray.ranks import RankGroup
from priml.learners.base import ProcessRewards
from priml.types import Group


class RemoteRecords:
    """The `Records` of the first rank, beside what the ranks hold."""

    def __init__(self, ranks: RankGroup) -> None:
        self._ranks = ranks

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        """Decided groups as one batch."""
        return self._ranks.call_rank0("records", "collate", [_light(group) for group in groups], step)

    def keep(
        self,
        path: Path,
        judged: Sequence[tuple[Group, Any]],
        batch: Batch,
        process: ProcessRewards,
        advantages_BT: Tensor,
        sources: Sequence[str] = (),
    ) -> dict[str, float]:
        """Write the rollout file of a finished step; its numbers, `sources` apart."""
        light = [(_light(group), filter_status) for group, filter_status in judged]
        return self._ranks.call_rank0("records", "keep", path.resolve(), light, batch, process, advantages_BT, sources)


def _light(group: Group) -> Group:
    """The group without the tests of its problem, which may be megabytes, and which a verdict has no need of."""
    return replace(group, prompt=replace(group.prompt, problem=replace(group.prompt.problem, tests=None)))


class RankRecords:
    """`Records` inside a rank: for them, the tokens of the groups are fetched."""

    def __init__(self, records: Any) -> None:
        self._records = records

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        """Decided groups as one batch."""
        return self._records.collate(brought(groups), step)

    def keep(self, path: Path, judged: Sequence[tuple[Group, Any]], *rest: Any) -> dict[str, float]:
        """Write the rollout file of a finished step; its numbers."""
        groups = brought(group for group, _ in judged)
        return self._records.keep(
            path, [(g, filter_status) for g, (_, filter_status) in zip(groups, judged, strict=True)], *rest
        )
