from __future__ import annotations

from typing import Any

import pytest

from priml.planner.layout import Layout, build_layout, layout_refusals, settle
from priml.planner.machine import PRESETS, Machine

ONE = Machine(PRESETS["h100"])
FOUR_NODES = Machine(PRESETS["h100"], per_node=8, nodes=4)


def ray(**more: Any) -> dict[str, Any]:
    return {"kind": "ray", "ranks": 8, "samplers": 8} | more


def test_the_settings_say_how_many_devices_train_and_sample(make_settings: Any):
    def counts(sampler: dict[str, Any] | None = None, **backend: Any) -> tuple[int, ...]:
        layout = build_layout(make_settings(backend=ray(**backend), **({"sampler": sampler} if sampler else {})))
        return layout.ranks, layout.shards, layout.sampling, layout.samplers_per_device, layout.devices

    assert counts() == (8, 8, 8, 1, 8)
    assert counts(samplers=2) == (8, 8, 2, 1, 8)
    assert counts(samplers=20) == (8, 8, 8, 3, 8)
    assert counts(replicas=2) == (8, 4, 8, 1, 8)
    assert counts(samplers=2, colocate=False) == (8, 8, 2, 1, 10)
    assert counts({"kind": "vllm", "tensor_parallel": 4}, samplers=2) == (8, 8, 8, 1, 8)
    assert counts({"kind": "vllm", "tensor_parallel": 4}, samplers=2, colocate=False) == (8, 8, 8, 1, 16)
    assert build_layout(make_settings()) == Layout()
    assert build_layout(make_settings(sampler={"kind": "vllm", "tensor_parallel": 2})).devices == 2


def test_more_devices_than_there_are_are_refused_with_what_would_fit(make_settings: Any):
    def refusals(machine: Machine, **backend: Any) -> list[str]:
        return list(layout_refusals(build_layout(make_settings(backend=ray(**backend))), machine))

    assert refusals(FOUR_NODES) == refusals(FOUR_NODES, ranks=24, samplers=8, colocate=False) == []
    (message,) = refusals(ONE)
    assert message.startswith(
        "backend: 8 devices that train are asked for, and the machine has 1: set backend.ranks: 1"
    )
    (message,) = refusals(FOUR_NODES, ranks=32, colocate=False)
    assert "32 devices that train and 8 that sample (colocate: false) are asked for, and the machine has 32" in message
    assert "set backend.ranks: 24 and samplers: 8, or colocate: true" in message
    (message,) = refusals(Machine(PRESETS["h100"], 8), ranks=4, samplers=4, placement="spread")
    assert message.startswith("backend.placement: spread puts each of 4 ranks on a node of its own, and there is 1")


def test_an_engine_stays_within_a_node(make_settings: Any):
    layout = build_layout(make_settings(backend=ray(samplers=1), sampler={"kind": "vllm", "tensor_parallel": 8}))
    assert list(layout_refusals(layout, FOUR_NODES)) == []
    (message,) = layout_refusals(layout, Machine(PRESETS["h100"], per_node=4, nodes=8))
    assert message.startswith(
        "sampler.tensor_parallel: an engine over 8 devices needs them in one node, and a node has 4"
    )


def test_settings_for_one_device_are_planned_as_if_they_were_spread_and_told_so(make_settings: Any):
    local = make_settings(backend={"micro_batch_tokens": 4096})
    assert settle(local, ONE) == (local, ())
    spread, (remark,) = settle(local, FOUR_NODES)
    assert build_layout(spread).ranks == build_layout(spread).samplers == 32
    assert spread.backend.micro_batch_tokens == 4096
    assert remark.startswith("backend.kind: local trains on one device")
    assert "backend: {kind: ray, ranks: 32, samplers: 32}" in remark


@pytest.mark.parametrize(("ranks", "remarks"), [(32, ()), (8, ("24 of 32 devices have nothing to do",))])
def test_idle_devices_are_told(make_settings: Any, ranks: int, remarks: tuple[str, ...]):
    cfg = make_settings(backend=ray(ranks=ranks))
    assert settle(cfg, FOUR_NODES) == (cfg, remarks)
