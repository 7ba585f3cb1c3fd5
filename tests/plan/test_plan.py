"""What to change first, and whether doing it helps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from priml.plan.machine import PRESETS, Machine
from priml.plan.plan import make_plan

ONE, EIGHT = Machine(PRESETS["h100"]), Machine(PRESETS["h100"], per_node=8)


def test_weights_that_do_not_fit_are_answered_with_more_devices(job_of: Any):
    plan = make_plan(job_of(machine=ONE))
    assert not plan.memory.fits
    assert "use more devices" in plan.advice[0]
    assert "prm.reference: policy saves the third model (28.4 GiB)" in plan.advice[1]


def test_rows_at_once_are_brought_down_until_they_fit(job_of: Any, settings_of: Any):
    plan = make_plan(job_of(settings_of(sampling={"group_size": 16}), EIGHT))
    assert plan.memory.peak.name.startswith("sample")
    found = re.match(r"sampler.max_rows: (\d+) or less", plan.advice[0])
    assert found
    again = make_plan(job_of(settings_of(sampling={"group_size": 16}, sampler={"max_rows": int(found[1])}), EIGHT))
    assert again.memory.fits


def test_activations_that_do_not_fit_are_answered_with_checkpointing_and_smaller_micro_batches(
    job_of: Any, qwen_7b: Any
):
    from dataclasses import replace

    wide = replace(qwen_7b, footprint=replace(qwen_7b.footprint, training=60 * 2**30))
    plan = make_plan(job_of(machine=EIGHT, facts=wide))
    assert plan.memory.peak.name.endswith("learn")
    assert plan.advice[0].startswith("policy.gradient_checkpointing: true")
    assert plan.advice[1].startswith("backend.micro_batch_tokens: ")


def test_the_bottleneck_and_the_rounds_are_spoken_of(job_of: Any, settings_of: Any):
    plan = make_plan(job_of())
    assert plan.time.longest.name == "sample"
    assert any(text.startswith("sampling waits for launches") for text in plan.advice)
    assert any(text.startswith("batch.draw: 432") for text in plan.advice)
    assert make_plan(job_of(settings_of(batch={"prompts": 256, "draw": 432}))).job.batch.collection.rounds == (432,)
    assert any(
        text.startswith("batch.draw: 432; 358 prompts a step are sampled in vain")
        for text in make_plan(job_of(settings_of(batch={"prompts": 256, "draw": 1024}))).advice
    )
    double = make_plan(job_of(settings_of(prm={"forward": "double"})))
    assert any(text.startswith("prm.forward: single") for text in double.advice)


def test_the_wire_is_answered_with_larger_micro_batches(job_of: Any):
    from dataclasses import replace

    plan = make_plan(job_of(machine=Machine(replace(PRESETS["h100"], network=1.0), 8, 4)))
    assert any("raise backend.micro_batch_tokens, so that there are fewer passes" in text for text in plan.advice)


@pytest.mark.parametrize("ranks", [64, 256, 2048])
def test_refusals_are_part_of_the_plan(job_of: Any, ranks: int):
    plan = make_plan(job_of(machine=Machine(PRESETS["h100"], 8, ranks // 8)))
    assert bool(plan.refusals) == (ranks > 256)
