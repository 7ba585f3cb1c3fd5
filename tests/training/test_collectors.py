"""Batches that are sampled while training goes on: which weights, which prompts, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from fakes import TableVerifier, make_prompt, make_trajectory
from priml.data.stream import ProblemStream
from priml.errors import RunError
from priml.graders.pool import VerifierPool
from priml.rollout.base import Finished, SamplingSpec
from priml.training.collect import CollectSpec, FilterBand, StarvedError
from priml.training.collectors import AsyncCollector, SyncCollector
from priml.types import Group, Prompt

WAIT_S = 60


class Sampler:
    """Answers right and wrong in turn, with the version it was given. A `gate` lets one call through at a time."""

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self._gate = gate
        self.version = -1
        self.calls: list[tuple[int, int]] = []
        """(step, version) of each call."""
        self.began = threading.Semaphore(0)

    def load(self, weights: int, version: int) -> None:
        assert weights == version, "the copy is that of its version"
        self.version = version

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Finished | None = None) -> list[Group]:
        self.calls.append((spec.step, self.version))
        version = self.version
        self.began.release()
        if self._gate is not None:
            assert self._gate.acquire(timeout=WAIT_S)
        groups = [
            Group(p, tuple(make_trajectory(text, sample=k, version=version) for k, text in enumerate("ab")))
            for p in prompts
        ]
        for group in groups:
            for trajectory in group.trajectories:
                assert finished is not None
                finished(group.prompt, trajectory)
        assert self.version == version, "weights change between batches only"
        return groups


def collect_spec(prompts: int = 2) -> CollectSpec:
    sampling = SamplingSpec(group_size=2, temperature=1.0, max_new_tokens=4, seed=0, step=0)
    return CollectSpec(sampling, prompts, None, FilterBand(0.2, 0.8), max_rounds=2)


def stream(count: int = 12) -> ProblemStream:
    return ProblemStream([make_prompt(f"p{i}") for i in range(count)], seed=0)


def make(sampler: Any, *, max_staleness: int = 1, last_step: int = 6, scores: Any = None) -> AsyncCollector[int]:
    return AsyncCollector(
        sampler,
        VerifierPool(TableVerifier(scores or {"a": 1.0, "b": 0.0})),
        stream(),
        collect_spec(),
        max_staleness=max_staleness,
        last_step=last_step,
        snapshot=lambda weights, in_use: weights,
    )


def problems(pool: Any) -> list[str]:
    return [group.prompt.problem.id for group in pool.kept]


def test_with_staleness_one_every_batch_has_the_weights_of_two_updates_before():
    sampler = Sampler()
    collector = make(sampler)
    collector.sync(0, version=0)
    versions = []
    for step in range(1, 7):
        pool = collector.collect(step)
        versions.append({t.weight_version for group in pool.kept for t in group.trajectories})
        collector.sync(step, version=step)
    collector.close()
    assert versions == [{0}, {0}, {1}, {2}, {3}, {4}]


@pytest.mark.parametrize("bound", [1, 2, 4])
def test_no_batch_is_older_than_the_bound_and_none_is_sampled_for_steps_after_the_last(bound):
    sampler = Sampler()
    collector = make(sampler, max_staleness=bound)
    collector.sync(0, version=0)
    for step in range(1, 7):
        collector.collect(step)
        collector.sync(step, version=step)
    collector.close()
    assert [step for step, _ in sampler.calls] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= step - 1 - version <= bound for step, version in sampler.calls)


def test_sampling_goes_on_while_training_does_and_waits_at_the_bound():
    sampler = Sampler()
    collector = make(sampler)
    collector.sync(0, version=0)
    collector.collect(1)
    for _ in range(2):
        assert sampler.began.acquire(timeout=WAIT_S), "the batch of step 2 is sampled before step 1 has ended"
    assert not sampler.began.acquire(timeout=0.2), "that of step 3 needs the weights of step 1"
    collector.sync(1, version=1)
    assert sampler.began.acquire(timeout=WAIT_S)
    collector.close()


def test_the_prompts_are_those_of_taking_turns_and_resuming_draws_what_was_in_flight_again():
    turns = SyncCollector(Sampler(), VerifierPool(TableVerifier({"a": 1.0, "b": 0.0})), stream(), collect_spec())
    expected = [problems(turns.collect(step)) for step in (1, 2, 3)]

    collector = make(Sampler())
    collector.sync(0, version=0)
    assert problems(collector.collect(1)) == expected[0]
    state = collector.state()
    assert problems(collector.collect(2)) == expected[1], "drawn before the state was asked for, or after"
    collector.close()

    resumed = make(Sampler())
    resumed.load(state)
    resumed.sync(1, version=1)
    assert [problems(resumed.collect(step)) for step in (2,)] == [expected[1]]
    resumed.sync(2, version=2)
    assert problems(resumed.collect(3)) == expected[2]
    resumed.close()


def test_other_work_has_the_sampler_to_itself_and_the_newest_weights():
    gate = threading.Semaphore(1)
    sampler = Sampler(gate)
    collector = make(sampler)
    collector.sync(0, version=0)
    collector.collect(1)
    collector.sync(1, version=1)
    assert sampler.began.acquire(timeout=WAIT_S)
    assert sampler.began.acquire(timeout=WAIT_S), "step 2 is being sampled, and held by the gate"
    threading.Timer(0.1, gate.release).start()
    with collector.idle():
        assert sampler.calls == [(1, 0), (2, 0)], "it waited for the batch"
        assert sampler.version == 1
        gate.release()
        assert not sampler.began.acquire(timeout=0.2), "and step 3 waits for the block"
    assert sampler.began.acquire(timeout=WAIT_S)
    collector.close()
    assert sampler.calls[-1] == (3, 1)


def test_what_goes_wrong_while_sampling_is_raised_where_training_waits():
    class Broken(Sampler):
        def sample(self, *args: Any, **kwargs: Any) -> list[Group]:
            raise RunError("the engine is gone")

    collector = make(Broken())
    collector.sync(0, version=0)
    with pytest.raises(RunError, match="the engine is gone"):
        collector.collect(1)
    collector.close()

    collector = make(Sampler(), scores={"a": 0.0, "b": 0.0})
    with pytest.raises(StarvedError, match="too hard"):
        collector.collect(1)
    collector.close()


def test_closing_ends_what_is_being_sampled():
    gate = threading.Semaphore(1)
    sampler = Sampler(gate)
    collector = make(sampler)
    collector.sync(0, version=0)
    collector.collect(1)
    for _ in range(2):
        assert sampler.began.acquire(timeout=WAIT_S)
    threading.Timer(0.1, gate.release).start()
    collector.close()
    assert sampler.calls == [(1, 0), (2, 0)]
    assert "collect" not in {thread.name for thread in threading.enumerate()}


def test_a_collector_that_never_began_closes():
    sampler = Sampler()
    make(sampler).close()
    assert sampler.calls == []
