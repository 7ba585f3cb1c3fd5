"""Tensors that the driver has by reference: functions go to them, and a step of any size leaves it nearly empty."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fakes import ScriptedSampler, TableVerifier, make_prompt
from priml.batch import Batch, Row, TokenScores, collate
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.distributed.ray.ranks import Rank, RemoteCritic, RemotePolicy, RemotePrm
from priml.distributed.ray.records import RemoteRecords
from priml.distributed.ray.refs import Held, HeldBatch, HeldMask, fetched, held, on_driver
from priml.graders.pool import VerifierPool
from priml.learners.base import NoCritic, ProcessRewards
from priml.learners.prm import NoPrm
from priml.maths.advantages import ESTIMATORS, estimate_advantages
from priml.planner.trace import _Live
from priml.training.loop import Roles, train
from priml.types import Group

from .conftest import Store


def there(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What a rank does with a function of held tensors, its arguments having travelled."""
    args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
    result = held(function(*map(fetched, args), **{name: fetched(value) for name, value in kwargs.items()}))
    return on_driver(result, there)


def a_batch() -> Batch:
    rows = [Row((1, 2), range(n), float(n % 2), 0, (n - 1,), sampler_logprobs=[-0.5] * n) for n in (5, 2, 4)]
    batch = collate(rows, step=3)
    return replace(batch.with_old(TokenScores(torch.randn(3, 5), torch.rand(3, 5))), values_BT=torch.rand(3, 5))


def test_a_batch_is_held_but_for_its_numbers_per_response_and_fetched_as_it_was(store: Store) -> None:
    batch = a_batch()
    ours: Any = on_driver(held(batch), there)
    assert isinstance(ours, HeldBatch)
    tensors = [ours.tokens_BL, ours.sampler_logprobs_BT, ours.old.logprobs_BT, ours.values_BT, ours.step_ends]
    assert all(type(each) is Held for each in tensors)
    assert isinstance(ours.mask_BT, HeldMask)
    assert torch.equal(ours.outcomes_B, batch.outcomes_B)
    assert store.got == 0
    theirs = fetched(pickle.loads(pickle.dumps(ours)))
    assert type(theirs) is Batch
    assert torch.equal(theirs.tokens_BL, batch.tokens_BL)
    assert torch.equal(theirs.old_logprobs_BT, batch.old_logprobs_BT)
    assert torch.equal(theirs.mask_BT, batch.mask_BT)
    assert torch.equal(fetched(ours.mask_BT), batch.mask_BT)
    assert [ends.tolist() for ends in theirs.step_ends] == [[4], [1], [3]]


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_advantages_of_held_tensors_are_estimated_where_they_lie(store: Store, estimator: str) -> None:
    batch = a_batch()
    rewards_BT = torch.randn(3, 5)
    settings: dict[str, Any] = {"estimator": estimator, "preset": "authors", "beta": 0.05}
    expected = estimate_advantages(
        batch.outcomes_B, rewards_BT, batch.mask_BT, batch.groups_B, values_BT=batch.values_BT, **settings
    )
    ours: Any = on_driver(held(batch), there)
    process = on_driver(held(ProcessRewards(rewards_BT, beta=0.05)), there)
    found: Any = estimate_advantages(
        ours.outcomes_B, process.rewards_BT, ours.mask_BT, ours.groups_B, values_BT=ours.values_BT, **settings
    )
    assert isinstance(found, Held)
    assert torch.equal(fetched(found), expected)
    assert torch.equal(fetched(found + ours.values_BT), expected + batch.values_BT)


def test_any_function_of_tensors_is_done_there(store: Store) -> None:
    x_BT = on_driver(held(torch.arange(6.0).view(2, 3)), there)
    assert fetched(torch.add(x_BT, x_BT)).tolist() == [[0, 2, 4], [6, 8, 10]]
    assert torch.sum(x_BT).item() == 15.0, "what has fewer than two dimensions comes back"


# --- the loop at full size, on tensors without contents ----------------------------------------------------------

RESPONSES, LENGTH, PROMPT, GROUP = 16_384, 32_768, 1_024, 16
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


def fake(width: int = LENGTH, dtype: torch.dtype = torch.float32) -> Tensor:
    with FAKE:
        return torch.empty(RESPONSES, width, dtype=dtype)


class Components:
    """Every role of a rank; what they make has the shapes of a large step."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, ...]] = []

    def collate(self, groups: Sequence[Group], step: int) -> Batch:
        return Batch(
            step=step,
            tokens_BL=fake(PROMPT + LENGTH, torch.int32),
            prompt_lengths_B=torch.full((RESPONSES,), PROMPT),
            response_lengths_B=torch.full((RESPONSES,), LENGTH),
            outcomes_B=torch.arange(RESPONSES) % 2.0,
            groups_B=torch.arange(RESPONSES) // GROUP,
            step_ends=(),
            truncated_B=torch.zeros(RESPONSES, dtype=torch.bool),
            sampler_logprobs_BT=fake(),
        )

    def keep(self, path: Path, judged: Any, batch: Batch, process: ProcessRewards, *rest: Any) -> dict[str, float]:
        advantages_BT, _ = rest
        self.kept.append((*advantages_BT.shape, len(judged)))
        return {}

    def update(self, *args: Any) -> None:
        pass

    def rewards(self, batch: Batch) -> ProcessRewards:
        return ProcessRewards(fake(), fake(), fake(), beta=0.05)


class Policy(Components):
    def score(self, batch: Batch) -> Batch:
        return batch.with_old(TokenScores(fake(), fake()))


class Critic(Components):
    def estimate_values(self, batch: Batch) -> Batch:
        return replace(batch, values_BT=fake())


class OneRank:
    """A `RankGroup` of one rank in this process. What that makes is not the driver's."""

    def __init__(self, roles: dict[str, Any]) -> None:
        self._rank = Rank(0, 1, os.getcwd())
        self._rank._roles = roles

    def call(self, role: str, method: str, *args: Any) -> Any:
        with _disable_current_modes():
            answer, _ = self._rank.call(role, method, args)
        return on_driver(answer, self.apply)

    call_rank0 = call

    def apply(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            answer, _ = self._rank.apply(function, args, kwargs)
        return on_driver(answer, self.apply)

    def gather(self) -> None:
        """No weights."""


class Steps:
    """The part of a `Run` that the loop calls, with the records of the real one."""

    process_factor = 1.0

    def __init__(self, records: RemoteRecords) -> None:
        self._records = records

    def steps(self) -> Iterator[int]:
        return iter((1, 2))

    def record(self, pool: Any, batch: Batch, process: ProcessRewards, advantages_BT: Tensor, *reports: Any) -> None:
        self._records.keep(Path(), pool.judged, batch, process, advantages_BT)


@pytest.mark.parametrize("settings", [{}, {"advantage": {"estimator": "ppo"}, "critic": {}}, {"prm": None}], ids=str)
def test_the_driver_of_half_a_billion_tokens_has_some_bytes_per_response(
    store: Store, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    # A fake tensor has no array, and a mask of real lengths would be real.
    monkeypatch.setattr("priml.distributed.ray.refs._put", lambda value, shape: Held(store.put(value), shape))
    monkeypatch.setattr(HeldMask, "fetch", lambda self: fake(dtype=torch.bool))
    tree = {
        "run_dir": "unused",
        "policy": {"model": "unused"},
        "data": {"train": {"kind": "chain"}},
        "sampling": {"group_size": 2},
        "batch": {"prompts": 1},
    } | settings
    cast = Components()
    ranks: Any = OneRank({"policy": Policy(), "prm": cast, "critic": Critic(), "records": cast})
    records = RemoteRecords(ranks)
    roles = Roles(
        ScriptedSampler({"p": ["good", "bad"]}),
        VerifierPool(TableVerifier({"good": 1.0})),
        records.collate,
        RemotePolicy(ranks, "policy"),
        RemotePrm(ranks, "prm") if "prm" not in settings else NoPrm(),
        RemoteCritic(ranks, "critic") if "critic" in settings else NoCritic(),
    )
    run: Any = Steps(records)
    with _Live([]) as live:
        train(roles, ProblemStream([make_prompt("p")], seed=0), parse_config(TrainConfig, tree, where="test"), run)
    assert live.peak < 200 * RESPONSES
    assert cast.kept == [(RESPONSES, LENGTH, 1)] * 2
