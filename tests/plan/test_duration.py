from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from priml.plan.duration import StepTime, plan_time
from priml.plan.machine import ENGINES, PRESETS, Machine
from priml.plan.memory import plan_memory

EAGER, PAGED = ENGINES["transformers"], ENGINES["vllm"]


def time_of(job: Any, engine: Any = EAGER) -> StepTime:
    return plan_time(job, plan_memory(job, engine), engine)


def seconds(time: StepTime) -> dict[str, float]:
    return {span.name: span.seconds for span in time.spans}


def test_learning_takes_its_operations_at_the_rate_reached(job_of: Any, qwen_7b: Any):
    job = job_of()
    span = next(span for span in time_of(job).spans if span.name == "policy: learn")
    tokens = 1024 * 1792 / 8
    flops = qwen_7b.training_flops(tokens, 1024 * 1536 / 8, 1792, checkpointing=False)
    adam = 4 * 28 * qwen_7b.parameters / 8 / (3350e9 * 0.6)
    assert span.compute == pytest.approx(flops / (989e12 * 0.4) + adam)


def test_full_sharding_moves_weights_twice_and_gradients_once_per_micro_batch(job_of: Any, qwen_7b: Any):
    spans = {span.name: span for span in time_of(job_of()).spans}
    each = (2 + 2 + 4) * qwen_7b.parameters * 7 / 8
    assert spans["policy: learn"].moved == pytest.approx(16 * each)
    assert spans["weights to samplers"].moved == pytest.approx(2 * qwen_7b.parameters * 7 / 8)
    one = time_of(job_of(machine=Machine(PRESETS["h200"])))
    assert one.moved == 0.0
    assert "weights to samplers" not in seconds(one)


def test_options_cost_the_passes_that_they_make(job_of: Any, settings_of: Any):
    def passes(**changes: Any) -> set[str]:
        return set(seconds(time_of(job_of(settings_of(**changes)))))

    assert passes() == {
        "sample", "policy: score", "reference: score", "PRM: learn", "policy: learn", "weights to samplers"
    }  # fmt: skip
    assert passes(prm=None) == passes() - {"reference: score", "PRM: learn"}
    assert passes(prm={"forward": "double"}) == passes() | {"PRM: score"}
    assert passes(prm={"forward": "frozen"}) == passes() - {"PRM: learn"} | {"PRM: score"}
    assert passes(prm={"loss": "pairwise"}) == passes() | {"PRM: score"}
    assert passes(prm={"reference": "policy"}) == passes() - {"reference: score"}
    assert passes(advantage={"estimator": "ppo"}, critic={}) == passes() | {"critic: score", "critic: learn"}


@settings(deadline=None)  # a busy machine is no failure
@given(gpus=st.sampled_from([1, 2, 4, 8]), factor=st.sampled_from([2, 4]))
def test_more_devices_never_compute_longer(job_of: Any, gpus: int, factor: int):
    few, many = (
        {span.name: span.compute for span in time_of(job_of(machine=Machine(PRESETS["h100"], per_node=n))).spans}
        for n in (gpus, gpus * factor)
    )
    assert all(many[name] <= few[name] * (1 + 1e-9) for name in few if name != "sample")


@settings(deadline=None)  # a busy machine is no failure
@given(share=st.floats(0.1, 1.0), response=st.floats(100.0, 3000.0))
def test_the_phases_add_up_and_the_longest_is_named(job_of: Any, share: float, response: float):
    time = time_of(job_of(share=share, response=response))
    assert time.seconds == pytest.approx(sum(span.seconds for span in time.spans))
    assert time.longest.seconds == max(span.seconds for span in time.spans)
    for span in time.spans:
        assert span.seconds == max(span.compute, span.wire)
        assert span.exposed == pytest.approx(span.seconds - span.compute)


def test_a_slow_network_is_what_learning_waits_for(job_of: Any):
    slow = replace(PRESETS["h100"], network=1.0)
    span = next(s for s in time_of(job_of(machine=Machine(slow, 8, 4))).spans if s.name == "policy: learn")
    assert span.limit == "the wire"
    assert span.exposed > 0


def test_recorded_graphs_save_the_launches(job_of: Any):
    eager, paged = (time_of(job_of(), engine).spans[0] for engine in (EAGER, PAGED))
    assert eager.limit == "launches"
    assert paged.limit != "launches"
    assert paged.seconds < eager.seconds
