"""Bytes per device. That they are those of a real step is measured in build/test_plan.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.plan.machine import ENGINES, PRESETS, Machine
from priml.plan.memory import cache_rooms, plan_memory

EAGER, PAGED = ENGINES["transformers"], ENGINES["vllm"]


def on(gpus: int, nodes: int = 1) -> Machine:
    return Machine(PRESETS["h100"], per_node=gpus, nodes=nodes)


def test_a_trained_model_takes_sixteen_bytes_a_parameter_and_a_frozen_one_four(job_of: Any, qwen_7b: Any):
    memory = plan_memory(job_of(machine=on(1)), EAGER)
    per_parameter = {role.role: (role.total + role.gradients) / qwen_7b.parameters for role in memory.roles}
    assert per_parameter == {"policy": 16.0, "PRM": 16.0, "reference": 4.0}


def test_shards_are_equal_parts(job_of: Any):
    one, eight = (plan_memory(job_of(machine=on(gpus)), EAGER) for gpus in (1, 8))
    for whole, part in zip(one.roles, eight.roles, strict=True):
        assert part.total == whole.total / 8
        assert part.gradients == whole.gradients / 8


@settings(deadline=None)  # a busy machine is no failure
@given(
    gpus=st.sampled_from([1, 2, 4, 8, 16, 32]),
    nodes=st.sampled_from([1, 2, 4]),
    prompts=st.integers(64, 512),
    engine=st.sampled_from([EAGER, PAGED]),
)
def test_twice_the_devices_never_need_more_memory_on_each(
    job_of: Any, settings_of: Any, gpus: int, nodes: int, prompts: int, engine: Any
):
    cfg = settings_of(batch={"prompts": prompts})
    before, after = (plan_memory(job_of(cfg, on(n, nodes)), engine) for n in (gpus, 2 * gpus))
    if gpus * nodes == 1:  # from one device to shards the sampler gets weights of its own: compare what stands
        assert after.phases[0].standing <= before.phases[0].standing
        return
    # A paged cache takes what is free, and with more room fewer devices share a sampler: then compare what is trained.
    if engine.is_paged or after.tensor_parallel < before.tensor_parallel:
        before, after = (replace(m, phases=m.phases[2:]) for m in (before, after))
    assert after.peak.total <= before.peak.total
    for mine, theirs in zip(after.phases, before.phases, strict=True):
        assert mine.total <= theirs.total


@settings(deadline=None)  # a busy machine is no failure
@given(
    gpus=st.integers(1, 16),
    forward=st.sampled_from(["single", "double", "frozen"]),
    reference=st.sampled_from(["initial", "policy"]),
)
def test_the_parts_of_a_phase_add_up_and_the_peak_is_one_of_them(
    job_of: Any, settings_of: Any, gpus: int, forward: str, reference: str
):
    memory = plan_memory(job_of(settings_of(prm={"forward": forward, "reference": reference}), on(gpus)), EAGER)
    standing = sum(role.total for role in memory.roles)
    for phase in memory.phases:
        parts = (phase.standing, phase.gradients, phase.weights, phase.activations, phase.cache)
        assert phase.total == pytest.approx(sum(parts))
        assert phase.standing == pytest.approx(standing)
        assert min(parts) >= 0
    assert memory.peak in memory.phases
    assert memory.fits == (memory.peak.total <= memory.capacity)


def test_a_model_less_is_memory_less(job_of: Any, settings_of: Any, qwen_7b: Any):
    def standing(**changes: Any) -> float:
        return plan_memory(job_of(settings_of(**changes), on(8)), EAGER).phases[0].standing * 8 / qwen_7b.parameters

    assert standing() == 12 + 12 + 4
    assert standing(prm={"reference": "policy"}) == 12 + 12
    assert standing(prm=None) == 12
    assert standing(prm=None, loss={"kl": {"weight": 0.1}}) == 12 + 4
    assert standing(advantage={"estimator": "ppo"}, critic={}) == 12 + 12 + 4 + 12
    assert standing(prm={"forward": "frozen"}) == 12 + 4 + 4


def test_samplers_share_devices_when_a_copy_of_the_weights_is_too_large_for_one(job_of: Any, qwen_7b: Any):
    large = replace(qwen_7b, parameters=32_763_876_352)
    assert plan_memory(job_of(machine=on(8)), EAGER).tensor_parallel == 1
    memory = plan_memory(job_of(machine=on(8, nodes=4), facts=large), EAGER)
    assert memory.tensor_parallel == 4
    assert memory.phases[0].weights == 2 * large.parameters / 4


def test_a_paged_cache_waits_where_a_plain_one_would_not_fit(job_of: Any, settings_of: Any):
    cfg = settings_of(sampling={"group_size": 16})
    plain, paged = (plan_memory(job_of(cfg, on(8)), engine) for engine in (EAGER, PAGED))
    assert not plain.fits
    assert paged.fits
    assert paged.rows_at_once < plain.rows_at_once


@pytest.mark.parametrize(("prompt", "longest"), [(10, 11), (10, 200), (1024, 4095), (1, 5000)])
def test_the_room_of_a_growing_cache_is_enough_and_at_most_a_half_more(prompt: int, longest: int):
    room, before = cache_rooms(prompt, longest)
    assert longest <= room <= max(1.5 * longest + 2, longest + 65)
    assert before < longest
