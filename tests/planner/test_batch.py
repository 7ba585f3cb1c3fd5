"""The sums of a step add up, agree with the loop that runs them, and nothing becomes zero without a word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import make_group
from priml.config.train import TrainConfig
from priml.errors import ConfigError
from priml.factories.algorithm import build_collect_spec
from priml.planner.batch import BatchPlan, Lengths, collect, expected_share, plan_batch
from priml.training.collect import StarvedError

LENGTHS = Lengths(256.0, 1536.0, 1024, 3072)


@pytest.fixture
def planned(make_settings: Callable[..., TrainConfig]) -> Callable[..., BatchPlan]:
    def plan(*, ranks: int = 1, share: float = 0.6, lengths: Lengths = LENGTHS, **changes: Any) -> BatchPlan:
        return plan_batch(make_settings(**changes), lengths, share, ranks)

    return plan


def test_the_paper_run_as_a_sum(planned: Callable[..., BatchPlan]):
    plan = planned(ranks=8)
    assert plan.collection.rounds == (256, 171)
    assert plan.sampled == 427 * 4
    assert plan.responses == 1024
    assert [(u.role, u.mini_batches, u.steps, u.rows_per_rank) for u in plan.updates] == [
        ("PRM", (256,) * 4, 4, (32, 32)),
        ("policy", (256,) * 4, 4, (32, 32)),
    ]
    assert plan.micro_rows == 16384 // 1792
    assert [u.micro_batches for u in plan.updates] == [4 * math.ceil(32 / 9)] * 2
    assert plan.refusals == ()


@pytest.mark.parametrize(("k", "share"), [(4, 3 / 5), (8, 5 / 9), (2, 1 / 3), (16, 9 / 17)])
def test_the_share_that_passes_counts_the_numbers_of_right_responses_inside_the_band(
    make_settings: Any, k: int, share: float
):
    assert expected_share(make_settings(sampling={"group_size": k})) == pytest.approx(share)
    assert expected_share(make_settings(sampling={"group_size": k}, filter=None)) == 1.0


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.5, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("batch", [{"prompts": 40}, {"prompts": 40, "draw": 100}, {"prompts": 40, "draw": 20}])
def test_the_rounds_are_those_that_the_loop_draws(make_settings: Any, share: float, batch: dict[str, int]):
    """Feed the loop's own pool groups of which exactly this share is informative, as far as whole groups go."""
    cfg = make_settings(batch=batch)
    pool, drawn, passed, rounds = build_collect_spec(cfg).new_pool(), 0, 0, []
    while not pool.is_full:
        rounds.append(pool.next_draw)
        drawn += rounds[-1]
        good = round(share * drawn) - passed
        passed += good
        pool.add([make_group([1.0, 0.0])] * good + [make_group([1.0, 1.0])] * (rounds[-1] - good))
    planned = collect(cfg, share)
    assert abs(sum(planned.rounds) - sum(rounds)) <= 1 + 1 / share  # the loop keeps whole prompts
    assert abs(len(planned.rounds) - len(rounds)) <= 1


def test_a_starved_step_is_refused_with_the_share_that_would_do(planned: Any, make_settings: Any):
    plan = planned(share=0.01)
    assert plan.collection.is_starved
    assert len(plan.refusals) == 1
    assert "filter.max_rounds: with a share of 0.01" in plan.refusals[0]
    assert "need 0.0256" in plan.refusals[0]
    pool = build_collect_spec(make_settings()).new_pool()
    for _ in plan.collection.rounds:
        draw = pool.next_draw
        pool.add([make_group([1.0, 0.0])] * (draw // 100) + [make_group([1.0, 1.0])] * (draw - draw // 100))
    assert not pool.is_full
    with pytest.raises(StarvedError):
        _ = pool.next_draw


def test_mini_batches_that_do_not_divide_are_told(planned: Callable[..., BatchPlan]):
    plan = planned(policy={"model": "m", "mini_batch": 300}, prm={"mini_batch": 255})
    prm, policy = plan.updates
    assert policy.mini_batches == (300, 300, 300, 124)
    assert prm.mini_batches == (252,) * 4 + (16,)
    notes = "\n".join(plan.notes)
    assert "policy.mini_batch: the last of 4 mini-batches has 124 responses instead of 300" in notes
    assert "prm.mini_batch=255 is rounded down to 252: the PRM keeps the responses of a prompt together" in notes


def test_a_mini_batch_beyond_the_batch_and_one_below_a_group_are_told(planned: Callable[..., BatchPlan]):
    plan = planned(policy={"model": "m", "mini_batch": 5000}, prm={"mini_batch": 3})
    assert plan.updates[0].mini_batches == (4,) * 256
    assert plan.updates[1].mini_batches == (1024,)
    notes = "\n".join(plan.notes)
    assert "policy.mini_batch=5000 is more than the batch of 1024: one optimizer step" in notes
    assert "prm.mini_batch=3 is raised to 4" in notes


def test_more_devices_than_rows_are_refused_and_never_a_zero(planned: Callable[..., BatchPlan]):
    plan = planned(ranks=64, policy={"model": "m", "mini_batch": 16})
    assert len(plan.refusals) == 1
    assert plan.refusals[0].startswith(
        "policy.mini_batch: a mini-batch of 16 responses leaves 48 of 64 devices without"
    )
    assert "need 64 or more" in plan.refusals[0]
    assert planned(ranks=16, policy={"model": "m", "mini_batch": 16}).refusals == ()


def test_rows_that_do_not_divide_among_devices_are_told(planned: Callable[..., BatchPlan]):
    plan = planned(ranks=6)
    assert any("256 responses do not divide evenly; a device gets 42 to 43" in note for note in plan.notes)


def test_what_the_filter_and_the_limits_drop_is_told(planned: Callable[..., BatchPlan]):
    notes = "\n".join(planned(batch={"prompts": 256, "draw": 512}).notes)
    assert "keeps prompts with 1 to 3 of 4 responses right; at the share assumed it drops 205 prompts a step" in notes
    assert "about 51 prompts a step pass when the batch is full already" in notes
    assert "data.prompt.max_prompt_tokens=1024" in notes
    assert "longer than backend.micro_batch_tokens=2048" in "\n".join(
        planned(backend={"micro_batch_tokens": 2048}).notes
    )
    assert "(overlong.kind: drop)" in "\n".join(planned(overlong={"kind": "drop"}).notes)
    assert "max_rows=2 is less than a group" in "\n".join(planned(sampler={"max_rows": 2}).notes)
    assert "filter" not in planned(filter=None).notes[0]


@settings(deadline=None)  # a busy machine is no failure
@given(
    prompts=st.integers(1, 300),
    k=st.integers(2, 16),
    mini=st.one_of(st.none(), st.integers(1, 600)),
    ranks=st.integers(1, 64),
    share=st.floats(0.05, 1.0),
)
def test_the_sums_add_up(make_settings: Any, prompts: int, k: int, mini: int | None, ranks: int, share: float):
    cfg = make_settings(
        batch={"prompts": prompts},
        sampling={"group_size": k},
        filter={"low": 0.0, "high": 1.0},
        policy={"model": "m", "mini_batch": mini},
        prm={"mini_batch": mini},
    )
    plan = plan_batch(cfg, LENGTHS, share, ranks)
    assert plan.responses == prompts * k
    for update in plan.updates:
        assert sum(update.mini_batches) == plan.responses
        assert min(update.mini_batches) > 0
        fewest, most = update.rows_per_rank
        assert fewest * ranks <= min(update.mini_batches)
        assert most * ranks >= max(update.mini_batches)
        assert update.micro_batches >= update.steps
        assert (fewest == 0) == any(text.startswith(f"{update.role.lower()}.mini") for text in plan.refusals)
    prm = plan.updates[0]
    assert all(size % k == 0 for size in prm.mini_batches)
    if not plan.collection.is_starved:
        assert plan.collection.drawn * share >= prompts - 1e-6


def test_a_band_that_nothing_reaches_is_refused_by_the_settings(make_settings: Any):
    with pytest.raises(ConfigError, match="no share of correct answers"):
        make_settings(filter={"low": 0.3, "high": 0.4}, sampling={"group_size": 4})
