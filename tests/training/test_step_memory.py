"""What one process holds of each token of a step, on paper and in fact: 16,384 responses of 32,768 tokens must pass.

On a cluster these are the object store and the first rank; of the driver see distributed/ray/test_refs.py.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from fakes import LENGTH, PROMPT, RESPONSES, LargeStep, ScriptedSampler, TableVerifier, make_group, make_prompt
from priml.batch import Batch, TokenScores
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.factories.algorithm import build_advantages, build_collect_spec
from priml.graders.pool import VerifierPool
from priml.learners.base import ProcessRewards
from priml.planner.trace import _Live
from priml.training.collect import GroupPool, collate_groups
from priml.training.collectors import SyncCollector
from priml.training.loop import Roles, train
from priml.training.metrics import mismatch_metrics, rollout_metrics
from priml.training.records import add_training_columns, rollout_rows, write_rollouts
from priml.types import Group, Segment, Trajectory

TOKENS = RESPONSES * LENGTH

# --- the arithmetic of a step, at full size, on tensors without contents -----------------------------------------


class FakeBatch(Batch):
    """A mask is made of lengths, and one of real lengths would be real."""

    @property
    def mask_BT(self) -> Tensor:
        return self.tokens_BL[:, PROMPT:] > 0


class Step(LargeStep):
    """Plays the run and the policy's weights, too."""

    def process_factor(self, report: Any) -> float:
        return 1.0

    def weights(self) -> Any:
        return SimpleNamespace(module=lambda: None)

    def steps(self) -> Iterator[int]:
        return iter((1, 2))

    def record(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        # Tokens with their mask and versions, 9; sampler and old log-probs and entropies, 12; rewards with both
        # log-probs, 12; the advantages of the step before, 4; and 24 that the estimator makes on the way, its result
        # among them.
        ({}, 62),
        ({"estimator": "grpo"}, 62),
        ({"estimator": "reinforce", "preset": "paper"}, 59),
        # Values and their returns, and the advantages while those are estimated.
        ({"estimator": "ppo"}, 82),
    ],
    ids=str,
)
def test_the_tensors_of_a_step_of_half_a_billion_tokens(settings: dict[str, str], bound: int) -> None:
    is_ppo = settings.get("estimator") == "ppo"
    tree = {
        "run_dir": "unused",
        "policy": {"model": "unused"},
        "data": {"train": {"kind": "chain"}},
        "sampling": {"group_size": 2},
        "batch": {"prompts": 1},
        "advantage": settings,
    } | ({"critic": {}} if is_ppo else {})
    step: Any = Step(FakeBatch)
    verify = VerifierPool(TableVerifier({"good": 1.0}))
    cfg = parse_config(TrainConfig, tree, where="test")
    critic: Any = SimpleNamespace(estimate_values=step.estimate_values, update=lambda *given: None)
    stream = ProblemStream([make_prompt("p")], seed=0)
    collector = SyncCollector(ScriptedSampler({"p": ["good", "bad"]}), verify, stream, build_collect_spec(cfg))
    roles = Roles(collector, step.collate, step, step, build_advantages(cfg), critic if is_ppo else None)
    with _Live([]) as live:
        train(roles, step)
    assert live.peak / TOKENS <= bound + 0.2, "the prompts' tokens are in the 0.2"
    assert live.peak / 2**30 < 42


# --- trajectories, rows and the file, in fact ---------------------------------------------------------------------


def a_group(responses: int, tokens: int) -> Group:
    judged = make_group([float(i % 2) for i in range(responses)])
    rng = np.random.default_rng(0)
    trajectories = tuple(
        Trajectory(
            (Segment(rng.integers(0, 150_000, tokens, dtype=np.int32), rng.random(tokens, dtype=np.float32), 0),),
            "",
            "stop",
            i,
        )
        for i in range(responses)
    )
    return replace(judged, trajectories=trajectories)


def ends(ids: Any) -> list[int]:
    return [len(ids) - 1]


def traced(make: Callable[[], Any]) -> tuple[Any, int, int]:
    """What it makes, the bytes this keeps, and the most it took on the way: Python and numpy."""
    tracemalloc.start()
    try:
        made = make()
        return made, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_a_trajectory_takes_eight_bytes_a_token() -> None:
    group, kept, _ = traced(lambda: a_group(16, 8_192))
    assert kept / (16 * 8_192) < 8.1
    assert not any(array.flags.writeable for c in group.trajectories for array in (c.token_ids, c.logprobs))


@contextmanager
def arrow_pool() -> Iterator[pa.MemoryPool]:
    """Counts what Arrow takes inside the block."""
    default = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(default)
    pa.set_memory_pool(counting)
    try:
        yield counting
    finally:
        pa.set_memory_pool(default)


@dataclass(frozen=True)
class Cost:
    """Bytes."""

    rows: int
    """That the rows of a step keep."""
    making: int
    """The most that making them took."""
    writing: int
    """The most that the file took, in Python, numpy and Arrow."""
    metrics: int


def measure_cost(folder: Path, responses: int, tokens: int) -> Cost:
    pool = GroupPool(wanted=1, band=None, max_rounds=1)
    pool.add([a_group(responses, tokens)])
    batch = collate_groups(pool.kept, 1, step_ends=ends)
    numbers = [torch.rand(responses, tokens) for _ in range(6)]
    batch = batch.with_old(TokenScores(numbers[0], numbers[1]))
    process = ProcessRewards(numbers[2], numbers[3], numbers[4], 0.05, torch.zeros(responses, dtype=torch.int32))

    def make() -> list[dict[str, Any]]:
        made = rollout_rows(1, pool.groups, ends)
        add_training_columns(made, batch, process, numbers[5])
        return made

    rows, kept, making = traced(make)
    with arrow_pool() as arrow:
        _, _, writing = traced(lambda: write_rollouts(rows, folder / "1.parquet"))
    assert arrow.max_memory() > 0
    assert arrow.bytes_allocated() == 0
    _, _, measuring = traced(lambda: rollout_metrics(rows, pool.groups))
    return Cost(kept, making, writing + arrow.max_memory(), measuring)


def test_rows_show_what_is_there_already_and_a_file_is_made_a_row_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, row_group = 1_024, 16 * 1_024
    monkeypatch.setattr("priml.training.records._GROUP_TOKENS", row_group)
    measure_cost(tmp_path, 8, 64)  # what is imported when it is first needed does not count
    few, many = measure_cost(tmp_path, 16, length), measure_cost(tmp_path, 64, length)
    assert many.rows < 64 * 4_000, "some kilobytes a response, however long"
    assert many.making < many.rows + 100 * length, "and the numbers of one response, for its step ends"
    assert many.metrics < 200 * length, "the n-grams of one response"
    # Eight columns of 4 bytes a token, and one of them once more in Arrow's own buffers.
    assert few.writing < 48 * row_group
    assert many.writing < 48 * row_group + 48 * 500, "four times the responses, in four row groups"


def test_sampler_and_trainer_are_compared_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("priml.training.metrics._CHUNK_TOKENS", 8 * 4_096)

    def peak(responses: int) -> int:
        batch = collate_groups([a_group(responses, 4_096)], 1, step_ends=ends)
        batch = batch.with_old(TokenScores(torch.rand(responses, 4_096), torch.rand(responses, 4_096)))
        given = [batch.sampler_logprobs_BT, batch.old_logprobs_BT, batch.response_lengths_B]
        with _Live(given) as live:
            mismatch_metrics(batch)
        return live.peak - responses * 4_096  # the mask

    assert peak(64) == pytest.approx(peak(16), rel=0.01)
    assert peak(64) < 100 * 8 * 4_096
