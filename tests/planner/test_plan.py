"""What to change first, and whether doing it helps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from priml.planner.machine import PRESETS, Machine
from priml.planner.plan import make_plan

ONE, EIGHT = Machine(PRESETS["h100"]), Machine(PRESETS["h100"], per_node=8)


def test_weights_that_do_not_fit_are_answered_with_more_devices(make_job: Any):
    plan = make_plan(make_job(machine=ONE))
    assert not plan.memory.fits
    assert "use more devices" in plan.advice[0]
    assert "prm.reference: policy saves the third model (28.4 GiB)" in plan.advice[1]


def test_rows_at_once_are_brought_down_until_they_fit(make_job: Any, make_settings: Any):
    plan = make_plan(make_job(make_settings(sampling={"group_size": 16}), EIGHT))
    assert plan.memory.peak.name.startswith("sample")
    found = re.match(r"sampler.max_rows: (\d+) or less", plan.advice[0])
    assert found
    again = make_plan(make_job(make_settings(sampling={"group_size": 16}, sampler={"max_rows": int(found[1])}), EIGHT))
    assert again.memory.fits


def test_activations_that_do_not_fit_are_answered_with_checkpointing_and_smaller_micro_batches(
    make_job: Any, make_settings: Any, qwen_7b: Any
):
    from dataclasses import replace

    wide = replace(qwen_7b, footprint=replace(qwen_7b.footprint, training=60 * 2**30))
    plan = make_plan(make_job(make_settings(sampler={"max_rows": 16}), EIGHT, facts=wide))
    assert plan.memory.peak.name.endswith("learn")
    assert plan.advice[0].startswith("policy.gradient_checkpointing: true")
    assert plan.advice[1].startswith("backend.micro_batch_tokens: ")


def test_the_bottleneck_and_the_rounds_are_spoken_of(make_job: Any, make_settings: Any):
    plan = make_plan(make_job())
    assert plan.time.longest.name == "sample"
    assert any(text.startswith("sampling waits for launches") for text in plan.advice)
    assert any(text.startswith("batch.draw: 432") for text in plan.advice)
    assert make_plan(make_job(make_settings(batch={"prompts": 256, "draw": 432}))).job.batch.collection.rounds == (432,)
    assert any(
        text.startswith("batch.draw: 432; 358 prompts a step are sampled in vain")
        for text in make_plan(make_job(make_settings(batch={"prompts": 256, "draw": 1024}))).advice
    )
    double = make_plan(make_job(make_settings(prm={"forward": "double"})))
    assert any(text.startswith("prm.forward: single") for text in double.advice)


def test_the_wire_is_answered_with_larger_micro_batches(make_job: Any):
    from dataclasses import replace

    plan = make_plan(make_job(machine=Machine(replace(PRESETS["h100"], network=1.0), 8, 4)))
    assert any("raise backend.micro_batch_tokens, so that there are fewer passes" in text for text in plan.advice)


@pytest.mark.parametrize("ranks", [64, 256, 2048])
def test_refusals_are_part_of_the_plan(make_job: Any, ranks: int):
    plan = make_plan(make_job(machine=Machine(PRESETS["h100"], 8, ranks // 8)))
    assert bool(plan.refusals) == (ranks > 256)


# --- engines -----------------------------------------------------------------------------------------------------


def test_an_engine_that_leaves_no_room_is_put_to_sleep_or_made_smaller(make_job: Any, make_settings: Any):
    def plan(**sampler: Any) -> Any:
        cfg = make_settings(sampler={"kind": "vllm", **sampler}, backend={"kind": "ray", "ranks": 8, "samplers": 8})
        return make_plan(make_job(cfg, EIGHT))

    crowded = plan(kv_cache_gib=36.0)
    assert not crowded.memory.fits
    assert crowded.advice[0].startswith("sampler.sleep: true; the engine then gives 50.2 GiB back")
    found = re.match(r"sampler.kv_cache_gib: ([\d.]+) or less", crowded.advice[1])
    assert found
    assert plan(kv_cache_gib=36.0, sleep=True).memory.fits
    assert plan(kv_cache_gib=float(found[1]) - 0.1).memory.fits


def test_a_cache_without_room_for_one_response_is_refused(make_job: Any, make_settings: Any):
    def refusals(**sampler: Any) -> tuple[str, ...]:
        return make_plan(make_job(make_settings(sampler={"kind": "vllm", **sampler}), ONE)).refusals

    assert refusals(kv_cache_gib=0.3) == ()
    (message,) = refusals(kv_cache_gib=0.2)
    assert message.startswith("sampler.kv_cache_gib: 0.2 GiB do not hold one response of 4096 tokens with its prompt")


def test_a_machine_that_is_too_small_is_refused(make_job: Any, make_settings: Any):
    plan = make_plan(make_job(make_settings(backend={"kind": "ray", "ranks": 32, "samplers": 32}), EIGHT))
    assert plan.refusals[0].startswith("backend: 32 devices that train are asked for, and the machine has 8")


def test_models_too_large_for_their_devices_may_rest_on_the_host(make_job: Any, make_settings: Any):
    plan = make_plan(make_job(make_settings(backend={"kind": "ray", "ranks": 4, "replicas": 4, "samplers": 4}), EIGHT))
    message = "\n".join(plan.advice)
    assert "backend.replicas: 1; every model is then spread over all 4 devices" in message
    assert "backend.cpu_offload: true" in message
    assert "policy.lora: {} and prm.lora: {}" in message
