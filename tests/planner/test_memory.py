"""Bytes per device. That they are those of a real step is measured in build/test_plan.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.planner.machine import PRESETS, Machine
from priml.planner.memory import MemoryPlan, cache_rooms, plan_memory

GIB = 2**30
TRANSFORMERS, VLLM = {"kind": "transformers"}, {"kind": "vllm", "kv_cache_gib": 12.0}


def on(gpus: int, nodes: int = 1) -> Machine:
    return Machine(PRESETS["h100"], per_node=gpus, nodes=nodes)


def ray(ranks: int, **more: Any) -> dict[str, Any]:
    return {"kind": "ray", "ranks": ranks, "samplers": ranks} | more


def phases(memory: MemoryPlan) -> dict[str, Any]:
    return {phase.name: phase for phase in memory.phases}


def test_a_trained_model_takes_sixteen_bytes_a_parameter_and_a_frozen_one_four(make_job: Any, qwen_7b: Any):
    memory = plan_memory(make_job(machine=on(1)))
    per_parameter = {role.role: (role.total + role.gradients) / qwen_7b.parameters for role in memory.roles}
    assert per_parameter == {"policy": 16.0, "PRM": 16.0, "reference": 4.0}


def test_shards_are_equal_parts_and_a_sampler_beside_them_is_whole(make_job: Any, qwen_7b: Any):
    one, eight = (plan_memory(make_job(machine=on(gpus))) for gpus in (1, 8))
    for whole, part in zip(one.roles, eight.roles[:3], strict=True):
        assert part.total == whole.total / 8
        assert part.gradients == whole.gradients / 8
    assert (eight.roles[3].role, eight.roles[3].total) == ("sampler", 4 * qwen_7b.parameters)


@settings(deadline=None)  # a busy machine is no failure
@given(
    gpus=st.sampled_from([1, 2, 4, 8, 16, 32]),
    nodes=st.sampled_from([1, 2, 4]),
    prompts=st.integers(64, 512),
    sampler=st.sampled_from([TRANSFORMERS, VLLM]),
)
def test_twice_the_devices_never_need_more_memory_on_each(
    make_job: Any, make_settings: Any, gpus: int, nodes: int, prompts: int, sampler: Any
):
    cfg = make_settings(batch={"prompts": prompts}, sampler=sampler)
    before, after = (plan_memory(make_job(cfg, on(n, nodes))) for n in (gpus, 2 * gpus))
    if gpus * nodes == 1:  # from one device to shards the sampler gets weights of its own: compare what stands
        assert after.phases[0].standing <= before.phases[0].standing
        return
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
    make_job: Any, make_settings: Any, gpus: int, forward: str, reference: str
):
    memory = plan_memory(make_job(make_settings(prm={"forward": forward, "reference": reference}), on(gpus)))
    standing = sum(role.total for role in memory.roles)
    for phase in memory.phases:
        parts = (phase.standing, phase.gradients, phase.weights, phase.activations, phase.cache)
        assert phase.total == pytest.approx(sum(parts))
        assert phase.standing == pytest.approx(standing)
        assert min(parts) >= 0
    assert memory.peak in memory.phases
    assert memory.fits == (memory.peak.total <= memory.capacity)


def test_a_model_less_is_memory_less(make_job: Any, make_settings: Any, qwen_7b: Any):
    def standing(**changes: Any) -> float:
        return plan_memory(make_job(make_settings(**changes), on(1))).phases[0].standing / qwen_7b.parameters

    assert standing() == 12 + 12 + 4
    assert standing(prm={"reference": "policy"}) == 12 + 12
    assert standing(prm=None) == 12
    assert standing(prm=None, loss={"kl": {"weight": 0.1}}) == 12 + 4
    assert standing(advantage={"estimator": "ppo"}, critic={}) == 12 + 12 + 4 + 12
    assert standing(prm={"forward": "frozen"}) == 12 + 4 + 4


# --- samplers ----------------------------------------------------------------------------------------------------


def test_an_engine_stands_beside_the_trainer_in_every_phase_unless_it_sleeps(
    make_job: Any, make_settings: Any, qwen_7b: Any
):
    engine = 2 * qwen_7b.parameters + 12 * GIB
    for machine, backend in ((on(1), {}), (on(8), ray(8))):
        awake, asleep = (
            phases(plan_memory(make_job(make_settings(sampler=VLLM | {"sleep": sleep}, backend=backend), machine)))
            for sleep in (False, True)
        )
        trained = asleep["policy: learn"].standing
        assert trained == pytest.approx(28 * qwen_7b.parameters / machine.devices)
        assert awake["policy: learn"].standing == pytest.approx(trained + engine)
        assert awake["sample: write"].standing == asleep["sample: write"].standing == pytest.approx(trained + engine)


def test_an_engine_computes_in_its_own_precision_and_is_spread_by_tensor_parallel(
    make_job: Any, make_settings: Any, qwen_7b: Any
):
    def engine(**sampler: Any) -> Any:
        cfg = make_settings(sampler=VLLM | sampler, backend=ray(8, samplers=2))
        return next(role for role in plan_memory(make_job(cfg)).roles if role.role == "sampler")

    assert engine().weights == 2 * qwen_7b.parameters
    assert engine(dtype="float32").weights == 4 * qwen_7b.parameters
    assert engine(tensor_parallel=4).weights == 2 * qwen_7b.parameters / 4
    assert engine(tensor_parallel=4).cache == 12 * GIB


def test_the_rows_of_an_engine_are_those_its_cache_has_room_for(make_job: Any, make_settings: Any, qwen_7b: Any):
    def rows(**sampler: Any) -> int:
        return plan_memory(make_job(make_settings(sampler=VLLM | sampler, backend=ray(8)))).rows_at_once

    assert rows(max_rows=64) == 64
    assert rows(kv_cache_gib=1.0) == int(GIB / (1792 * qwen_7b.cache * 2))
    assert rows(kv_cache_gib=1.0, dtype="float32") == int(GIB / (1792 * qwen_7b.cache * 4))
    assert rows(kv_cache_gib=16.0) == 128  # a round of 256 prompts x 4, among eight


def test_samplers_of_their_own_devices_are_counted_apart(make_job: Any, make_settings: Any, qwen_7b: Any):
    def memory(**backend: Any) -> dict[str, Any]:
        cfg = make_settings(sampler=VLLM, backend=ray(4, **backend))
        return phases(plan_memory(make_job(cfg, on(8))))

    separate, together = memory(colocate=False), memory()
    assert separate["sample: write"].standing == 2 * qwen_7b.parameters + 12 * GIB
    assert separate["policy: learn"].standing == 28 * qwen_7b.parameters / 4
    assert together["policy: learn"].standing == pytest.approx(
        separate["policy: learn"].standing + separate["sample: write"].standing
    )


def test_several_samplers_on_a_device_each_have_weights(make_job: Any, make_settings: Any, qwen_7b: Any):
    memory = plan_memory(make_job(make_settings(backend=ray(2, samplers=4)), on(2)))
    assert memory.roles[-1].weights == 2 * 4 * qwen_7b.parameters


# --- replicas, host ----------------------------------------------------------------------------------------------


def test_replicas_divide_a_model_among_fewer_devices(make_job: Any, make_settings: Any, qwen_7b: Any):
    def standing(replicas: int) -> float:
        memory = plan_memory(make_job(make_settings(backend=ray(16, replicas=replicas)), on(8, nodes=2)))
        return sum(role.total for role in memory.roles if role.role != "sampler")

    assert standing(1) == pytest.approx(28 * qwen_7b.parameters / 16)
    assert standing(2) == pytest.approx(28 * qwen_7b.parameters / 8)


def test_kept_responses_are_counted_in_every_rank_of_a_host(make_job: Any, make_settings: Any):
    job = make_job(make_settings(prm={"replay": {"keep": 1000}}))
    assert plan_memory(make_job(make_settings())).host.replay == 0
    assert plan_memory(job).host.replay == 1000 * job.lengths.longest * 9 * job.layout.ranks


def test_what_is_offloaded_rests_on_the_host(make_job: Any, make_settings: Any, qwen_7b: Any):
    def plan(**backend: Any) -> MemoryPlan:
        return plan_memory(make_job(make_settings(backend=ray(16, **backend)), on(8, nodes=2)))

    here, there = plan(), plan(cpu_offload=True)
    assert [role.total for role in there.roles if role.role != "sampler"] == [0, 0, 0]
    assert here.host.shards == 0
    assert there.host.shards == pytest.approx(36 * qwen_7b.parameters / 2)  # of each of two nodes, gradients with it
    assert plan(cpu_offload=True, replicas=2).host.shards == pytest.approx(36 * qwen_7b.parameters)
    whole = phases(here)["policy: learn"]
    assert phases(there)["policy: learn"].total < whole.total


def test_the_host_has_weights_under_way_and_a_copy_of_what_is_saved(make_job: Any, make_settings: Any, qwen_7b: Any):
    size = 4 * qwen_7b.parameters
    host = plan_memory(make_job(make_settings(backend=ray(16)), on(8, nodes=2))).host
    assert (host.loading, host.weights) == (size, 3 * size)
    assert host.checkpoint == pytest.approx(2 * 3 * size / 2)  # weights and moments of two models, half of the ranks

    def engines(**sampler: Any) -> float:
        cfg = make_settings(backend=ray(16, samplers=4), sampler=VLLM | {"tensor_parallel": 4} | sampler)
        return plan_memory(make_job(cfg, on(8, nodes=2))).host.weights / size

    assert engines() == 3 / 2 + 2 / 2  # in bf16; a file for each of two engines
    assert engines(sleep=True) == engines() + 2 / 2
    assert plan_memory(make_job(machine=on(1))).host.weights == 0


def test_the_tokens_of_a_step_are_held_where_the_first_rank_is(make_job: Any, make_settings: Any):
    def tokens(backend: Any, machine: Any, **settings: Any) -> tuple[float, Any]:
        job = make_job(make_settings(backend=backend, **settings), machine)
        return plan_memory(job).host.tokens, job

    here, job = tokens({"kind": "local"}, on(1))
    length = job.lengths.longest_response
    kept, drawn = job.batch.responses * length, job.batch.collection.drawn * job.batch.group_size * length
    assert here == 12 * drawn + 67 * kept
    assert tokens(ray(16), on(8, nodes=2))[0] == 12 * drawn + (53 + 25 + 8 * 24) * kept
    assert tokens(ray(16, placement="spread"), on(8, nodes=16))[0] == 12 * drawn + (53 + 25 + 24) * kept


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(make_job: Any, make_settings: Any, qwen_7b: Any) -> Any:
    def plan(machine: Machine, *, shares: bool, **changes: Any) -> MemoryPlan:
        job = make_job(make_settings(**changes), machine, facts=replace(qwen_7b, adapters=40_000_000))
        policy, prm, reference = job.models
        models = (policy, replace(prm, shares_weights=shares), replace(reference, shares_weights=shares, facts=qwen_7b))
        return plan_memory(replace(job, models=models))

    return plan


def test_adapters_learn_and_the_weights_beneath_them_stand_once_on_one_device(adapted: Any, qwen_7b: Any):
    policy, prm, reference = adapted(on(1), shares=True).roles
    assert policy.weights == 4 * (qwen_7b.parameters + 40_000_000)
    assert (prm.weights, reference.weights) == (4 * 40_000_000, 0)
    for role in (policy, prm):
        assert (role.moments, role.gradients) == (8 * 40_000_000, 4 * 40_000_000)


def test_sharded_each_role_has_weights_of_its_own(adapted: Any, qwen_7b: Any):
    policy, prm, reference, _ = adapted(on(8), shares=False).roles
    assert policy.weights == prm.weights == 4 * (qwen_7b.parameters + 40_000_000) / 8
    assert reference.weights == 4 * qwen_7b.parameters / 8
    assert policy.moments == 8 * 40_000_000 / 8


def test_frozen_weights_are_lowered_one_after_the_other_by_the_sampler_in_the_trainer(adapted: Any, qwen_7b: Any):
    copies = phases(adapted(on(1), shares=True))["sample: write"].weights
    assert copies == 2 * (40_000_000 + qwen_7b.largest_matrix)


@pytest.mark.parametrize(("prompt", "longest"), [(10, 11), (10, 200), (1024, 4095), (1, 5000)])
def test_the_room_of_a_growing_cache_is_enough_and_at_most_a_half_more(prompt: int, longest: int):
    room, before = cache_rooms(prompt, longest)
    assert longest <= room <= max(1.5 * longest + 2, longest + 65)
    assert before < longest


def test_sampling_while_training_takes_copies_and_both_at_once(make_job: Any, make_settings: Any, qwen_7b: Any):
    in_turns = plan_memory(make_job(make_settings(), on(1)))
    stale = {"sampling": {"max_staleness": 1}, "sampler": {"kind": "transformers", "copy_weights": True}}
    together = plan_memory(make_job(make_settings(**stale), on(1)))
    (sampler,) = (role for role in together.roles if role.role == "sampler")
    assert sampler.weights == 2 * 4 * qwen_7b.parameters
    copies = sampler.weights
    sampling = max(phases(in_turns)[name].total for name in ("sample: read", "sample: write"))
    for name in ("policy: score", "policy: learn"):
        alone, beside = phases(in_turns)[name], phases(together)[name]
        assert beside.standing == sampling + copies
        assert beside.total - beside.standing == pytest.approx(alone.total - alone.standing)
