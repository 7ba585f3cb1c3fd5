from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.planner.duration import StepTime, plan_time
from priml.planner.machine import PRESETS, Machine
from priml.planner.memory import plan_memory


def estimate_step(job: Any) -> StepTime:
    return plan_time(job, plan_memory(job))


def seconds(time: StepTime) -> dict[str, float]:
    return {span.name: span.seconds for span in time.spans}


def test_one_process_works_on_all_tokens(make_job: Any):
    job = make_job()
    span = {span.name: span for span in estimate_step(job).spans}["batch, advantages, rollout file"]
    assert span.seconds == 0.5e-6 * job.batch.sampled * job.lengths.response
    assert span.limit == "the host"


def test_learning_takes_its_operations_at_the_rate_reached(make_job: Any, qwen_7b: Any):
    job = make_job()
    span = next(span for span in estimate_step(job).spans if span.name == "policy: learn")
    tokens = 1024 * 1792 / 8
    flops = qwen_7b.training_flops(tokens, 1024 * 1536 / 8, 1792, checkpointing=False)
    adam = 4 * 28 * qwen_7b.parameters / 8 / (3350e9 * 0.6)
    assert span.compute == pytest.approx(flops / (989e12 * 0.4) + adam)


def test_full_sharding_moves_weights_twice_and_gradients_once_per_micro_batch(make_job: Any, qwen_7b: Any):
    spans = {span.name: span for span in estimate_step(make_job()).spans}
    each = (2 + 2 + 4) * qwen_7b.parameters * 7 / 8
    assert spans["policy: learn"].moved == pytest.approx(16 * each)
    assert spans["weights: gather"].moved == pytest.approx(4 * qwen_7b.parameters * 7 / 8)
    assert spans["weights: to samplers"].copied == 2 * 4 * qwen_7b.parameters
    one = estimate_step(make_job(machine=Machine(PRESETS["h200"])))
    assert one.moved == 0.0
    assert not any(name.startswith("weights") for name in seconds(one))


def test_options_cost_the_passes_that_they_make(make_job: Any, make_settings: Any):
    def passes(**changes: Any) -> set[str]:
        return set(seconds(estimate_step(make_job(make_settings(**changes)))))

    assert passes() == {
        "sample", "policy: score", "reference: score", "PRM: learn", "policy: learn",
        "batch, advantages, rollout file", "weights: gather", "weights: to samplers",
    }  # fmt: skip
    assert passes(prm=None) == passes() - {"reference: score", "PRM: learn"}
    assert passes(prm={"forward": "double"}) == passes() | {"PRM: score"}
    assert passes(prm={"forward": "frozen"}) == passes() - {"PRM: learn"} | {"PRM: score"}
    assert passes(prm={"loss": "pairwise"}) == passes() | {"PRM: score"}
    assert passes(prm={"reference": "policy"}) == passes() - {"reference: score"}
    on_policy = {"policy": {"model": "m", "mini_batch": None}}
    assert passes(**on_policy) == passes() - {"policy: score"}
    assert passes(**on_policy, prm={"reference": "policy"}) == passes() - {"reference: score"}
    assert passes(advantage={"estimator": "ppo"}, critic={}) == passes() | {"critic: score", "critic: learn"}


@settings(deadline=None)  # a busy machine is no failure
@given(gpus=st.sampled_from([1, 2, 4, 8]), factor=st.sampled_from([2, 4]))
def test_more_devices_never_compute_longer(make_job: Any, gpus: int, factor: int):
    few, many = (
        {
            span.name: span.compute
            for span in estimate_step(make_job(machine=Machine(PRESETS["h100"], per_node=n))).spans
        }
        for n in (gpus, gpus * factor)
    )
    assert all(many[name] <= few[name] * (1 + 1e-9) for name in few if name != "sample")


@settings(deadline=None)  # a busy machine is no failure
@given(share=st.floats(0.1, 1.0), response=st.floats(100.0, 3000.0))
def test_the_phases_add_up_and_the_longest_is_named(make_job: Any, share: float, response: float):
    time = estimate_step(make_job(share=share, response=response))
    assert time.seconds == pytest.approx(sum(span.seconds for span in time.spans))
    assert time.longest.seconds == max(span.seconds for span in time.spans)
    for span in time.spans:
        assert span.seconds == max(span.compute, span.wire, span.host)
        assert span.exposed == pytest.approx(max(span.wire - span.compute, 0.0))


def test_a_slow_network_is_what_learning_waits_for(make_job: Any):
    slow = replace(PRESETS["h100"], network=1.0)
    span = next(s for s in estimate_step(make_job(machine=Machine(slow, 8, 4))).spans if s.name == "policy: learn")
    assert span.limit == "the wire"
    assert span.exposed > 0


def test_recorded_graphs_save_the_launches(make_job: Any, make_settings: Any, qwen_7b: Any):
    small = replace(qwen_7b, parameters=500_000_000)

    def sampling(**sampler: Any) -> Any:
        return estimate_step(make_job(make_settings(sampler=sampler), facts=small)).spans[0]

    plain, eager = sampling(kind="transformers"), sampling(kind="vllm", kv_cache_gib=16.0)
    recorded = sampling(kind="vllm", kv_cache_gib=16.0, enforce_eager=False)
    assert plain.limit == eager.limit == "launches"
    assert recorded.limit != "launches"
    assert recorded.seconds < eager.seconds < plain.seconds


# --- other layouts -----------------------------------------------------------------------------------------------


def spans(job: Any) -> dict[str, Any]:
    return {span.name: span for span in estimate_step(job).spans}


def ray(ranks: int, **more: Any) -> dict[str, Any]:
    return {"kind": "ray", "ranks": ranks, "samplers": ranks} | more


def test_replicas_gather_inside_a_node_and_sum_gradients_between_nodes(make_job: Any, make_settings: Any, qwen_7b: Any):
    machine, size = Machine(PRESETS["h100"], per_node=8, nodes=4), qwen_7b.parameters
    whole, copies = (
        spans(make_job(make_settings(backend=ray(32, replicas=replicas)), machine))["policy: learn"]
        for replicas in (1, 4)
    )
    assert whole.moved == pytest.approx(4 * (2 + 2 + 4) * size * 31 / 32)
    assert copies.moved == pytest.approx(4 * ((2 + 2 + 4) * size * 7 / 8 + 2 * (4 * size / 8) * 3 / 4))
    assert copies.wire < whole.wire / 3  # most of it stays on the faster link
    assert copies.wire > 4 * 2 * (4 * size / 8) * 3 / 4 / machine.wire(32)


def test_ranks_that_are_spread_over_nodes_wait_for_the_network(make_job: Any, make_settings: Any):
    machine = Machine(PRESETS["h100"], per_node=8, nodes=4)
    packed, spread = (
        spans(make_job(make_settings(backend=ray(4, placement=placement)), machine))["policy: learn"]
        for placement in ("pack", "spread")
    )
    assert spread.wire == pytest.approx(packed.wire * 450 / 50)


def test_offloaded_shards_go_up_twice_and_gradients_down(make_job: Any, make_settings: Any, qwen_7b: Any):
    job = make_job(make_settings(backend=ray(8, cpu_offload=True)))
    learning, scoring = spans(job)["policy: learn"], spans(job)["reference: score"]
    assert learning.copied == pytest.approx(16 * 3 * 4 * qwen_7b.parameters / 8)
    assert scoring.copied == pytest.approx(job.batch.scoring_passes * 4 * qwen_7b.parameters / 8)
    adam = 4 * 28 * qwen_7b.parameters / 8 / job.machine.host_rate
    assert learning.host == pytest.approx(learning.copied / (64e9 * 0.7) + adam)
    slow = replace(job.machine, device=replace(job.machine.device, pcie=1.0))
    assert spans(replace(job, machine=slow))["policy: learn"].limit == "the host"


def test_fewer_samplers_take_longer_and_an_engine_over_several_devices_reads_its_weights_faster(
    make_job: Any, make_settings: Any
):
    def sampling(samplers: int, degree: int) -> float:
        sampler = {"kind": "vllm", "kv_cache_gib": 40.0, "tensor_parallel": degree, "enforce_eager": False}
        return (
            estimate_step(make_job(make_settings(sampler=sampler, backend=ray(8, samplers=samplers)))).spans[0].seconds
        )

    assert sampling(1, 1) > 2 * sampling(8, 1)
    assert sampling(2, 4) < sampling(2, 1)


def test_adapters_save_the_gradients_of_the_weights(make_job: Any, qwen_7b: Any):
    whole, adapted = (spans(make_job(facts=replace(qwen_7b, adapters=count))) for count in (0, 40_000_000))
    assert 0.6 < adapted["policy: learn"].compute / whole["policy: learn"].compute < 0.8
    shard = 4 * 40_000_000 / 8
    gathered = 2 * (qwen_7b.parameters + 40_000_000) * 7 / 8
    assert adapted["policy: learn"].moved == pytest.approx(16 * (2 * gathered + 7 * shard))


def test_an_engine_is_given_all_weights_as_it_computes_and_a_model_like_the_trainers_what_was_trained(
    make_job: Any, make_settings: Any, qwen_7b: Any
):
    adapted = replace(qwen_7b, adapters=40_000_000)

    def copied(facts: Any, **sampler: Any) -> float:
        return spans(make_job(make_settings(sampler=sampler), facts=facts))["weights: to samplers"].copied / 2

    assert copied(qwen_7b, kind="vllm") == copied(adapted, kind="vllm") == 2 * qwen_7b.parameters
    assert copied(qwen_7b, kind="vllm", dtype="float32") == 4 * qwen_7b.parameters
    assert copied(qwen_7b, kind="transformers") == 4 * qwen_7b.parameters
    assert copied(adapted, kind="transformers") == 4 * 40_000_000


def test_sampling_on_devices_of_its_own_hides_behind_training_or_training_behind_it(make_job: Any, make_settings: Any):
    machine = Machine(PRESETS["h100"], per_node=8, nodes=2)

    def step(max_staleness: int) -> StepTime:
        backend = ray(8, colocate=False)
        job = make_job(make_settings(backend=backend, sampling={"max_staleness": max_staleness}), machine)
        return plan_time(job, plan_memory(job))

    in_turns, together = step(0), step(1)
    sampling = in_turns.spans[0].seconds
    assert [span.seconds for span in together.spans] == [span.seconds for span in in_turns.spans]
    assert together.seconds == max(sampling, in_turns.seconds - sampling) < in_turns.seconds
