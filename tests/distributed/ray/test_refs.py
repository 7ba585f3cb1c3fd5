"""Batches and tensors that the driver has by reference: a step of any size leaves it nearly empty."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from fakes import LENGTH, RESPONSES, LargeStep, ScriptedSampler, TableVerifier, empty_tensor, make_prompt
from priml.batch import Batch, Row, TokenScores, collate
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.distributed.ray.ranks import Rank
from priml.distributed.ray.refs import BatchRef, TensorRef, get_value, put_result
from priml.distributed.ray.roles import (
    RankRecords,
    RemoteAdvantages,
    RemoteCritic,
    RemotePolicy,
    RemotePrm,
    RemoteRecords,
)
from priml.factories.algorithm import build_advantages, build_collect_spec
from priml.graders.pool import VerifierPool
from priml.learners.base import ProcessRewards
from priml.maths.advantages import ESTIMATORS
from priml.planner.trace import _Live
from priml.training.advantages import LocalAdvantages
from priml.training.collectors import SyncCollector
from priml.training.loop import Roles, train
from priml.training.records import FinishedStep

from .conftest import Store


def a_batch() -> Batch:
    rows = [Row((1, 2), range(n), float(n % 2), 0, (n - 1,), sampler_logprobs=[-0.5] * n) for n in (5, 2, 4)]
    batch = collate(rows, step=3)
    return replace(batch.with_old(TokenScores(torch.randn(3, 5), torch.rand(3, 5))), values_BT=torch.rand(3, 5))


def test_a_batch_comes_out_as_it_went_in_and_scores_are_stored_beside_it(store: Store) -> None:
    batch = a_batch()
    unscored = replace(batch, old=None)
    ref = put_result(unscored)
    assert isinstance(ref, BatchRef)
    scored = ref.replace(unscored, batch)
    assert store.got == 0
    assert store.values[scored.parts[-1]].keys() == {"old"}, "the tokens are not stored twice"
    theirs = get_value(pickle.loads(pickle.dumps(scored)))
    assert type(theirs) is Batch
    assert all(getattr(theirs, field.name) is getattr(batch, field.name) for field in fields(Batch))
    assert get_value(ref).old is None


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_advantages_are_estimated_where_the_tensors_are(store: Store, estimator: str) -> None:
    batch, process = a_batch(), ProcessRewards(torch.randn(3, 5), beta=0.05)
    local = LocalAdvantages(estimator=estimator, preset="authors")
    ranks: Any = OneRank({"advantages": local})
    ref: Any = put_result(batch)
    found = RemoteAdvantages(ranks).estimate(ref, TensorRef(store.put(process)), 1.0)
    expected = local.estimate(batch, process, 1.0)
    assert expected.returns_BT is not None
    assert torch.equal(found.advantages_BT.get(), expected.advantages_BT)
    assert torch.equal(found.returns_BT.get(), expected.returns_BT)


# --- the loop at full size, on tensors without contents ----------------------------------------------------------


class SavingStep(LargeStep):
    """Records what it is asked to save."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[tuple[int, ...]] = []

    def save(self, path: Path, done: FinishedStep, sources: Sequence[str] = ()) -> dict[str, float]:
        self.saved.append((*done.advantages_BT.shape, len(done.groups)))
        return {}


class OneRank:
    """A `RankGroup` of one rank in this process. What that makes is not the driver's."""

    def __init__(self, roles: dict[str, Any]) -> None:
        self._rank = Rank(0, 1, os.getcwd())
        self._rank._roles = roles

    def call(self, role: str, method: str, *args: Any, stored: bool = False) -> Any:
        with _disable_current_modes():
            return self._rank.call(role, method, args, stored)[0]

    call_rank0 = call

    def check_folder(self, folder: Path) -> None:
        self._rank.check_folder(folder)

    def gather(self) -> None:
        """No weights."""


class Steps:
    """The part of a `Run` that the loop calls, with the records of the real one."""

    def process_factor(self, report: Any) -> float:
        return 1.0

    def __init__(self, records: Any) -> None:
        self._records = records

    def steps(self) -> Iterator[int]:
        return iter((1, 2))

    def record(self, done: FinishedStep, *reports: Any) -> None:
        self._records.save(Path("rollouts.parquet"), done)


@pytest.mark.parametrize("settings", [{}, {"advantage": {"estimator": "ppo"}, "critic": {}}, {"prm": None}], ids=str)
def test_the_driver_of_half_a_billion_tokens_has_some_bytes_per_response(
    store: Store, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    # A mask of real lengths would be real.
    monkeypatch.setattr(Batch, "mask_BT", property(lambda self: empty_tensor(dtype=torch.bool)))
    tree = {
        "run_dir": "unused",
        "policy": {"model": "unused"},
        "data": {"train": {"kind": "chain"}},
        "sampling": {"group_size": 2},
        "batch": {"prompts": 1},
    } | settings
    cfg = parse_config(TrainConfig, tree, where="test")
    step = SavingStep()
    others = {"records": RankRecords(step), "advantages": build_advantages(cfg)}
    ranks: Any = OneRank({"policy": step, "prm": step, "critic": step, **others})
    records: Any = RemoteRecords(ranks)
    policy, prm, critic, advantages = (
        RemotePolicy(ranks, "policy"),
        RemotePrm(ranks, "prm") if "prm" not in settings else None,
        RemoteCritic(ranks, "critic") if "critic" in settings else None,
        RemoteAdvantages(ranks),
    )
    stand_ins: Any = {"policy": policy, "prm": prm, "critic": critic, "advantages": advantages}
    collector = SyncCollector(
        ScriptedSampler({"p": ["good", "bad"]}),
        VerifierPool(TableVerifier({"good": 1.0})),
        ProblemStream([make_prompt("p")], seed=0),
        build_collect_spec(cfg),
    )
    roles = Roles(collector, records.collate, **stand_ins)
    run: Any = Steps(records)
    with _Live([]) as live:
        train(roles, run)
    assert live.peak < 200 * RESPONSES
    assert step.saved == [(RESPONSES, LENGTH, 1)] * 2
