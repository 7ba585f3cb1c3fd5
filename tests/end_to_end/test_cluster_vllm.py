"""Runs on Ray whose samplers are vLLM engines: sharded ranks push, engines prove, lost engines come back."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from fakes import read_metrics, read_rollouts, tiny_config
from priml.commands.train import run_training
from priml.distributed.ray.samplers import SamplerPool
from priml.errors import ModelError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or importlib.util.find_spec("ray") is None,
        reason="vLLM or Ray is not installed here: make test-vllm runs this",
    ),
]

RAY = "backend={kind: ray, ranks: 2, samplers: 1, micro_batch_tokens: 40, device: cpu}"


def engine(**more: Any) -> str:
    chosen = {"kind": "vllm", "kv_cache_gib": 0.05, "max_rows": 64} | more
    return "sampler={" + ", ".join(f"{key}: {value}" for key, value in chosen.items()) + "}"


@pytest.mark.parametrize("trained", ["weights", "separate adapters"])
def test_engines_speak_with_the_ranks_weights_and_a_killed_one_is_replaced(
    ray_here: Any, tmp_path: Path, wide_model: Path, monkeypatch: pytest.MonkeyPatch, trained: str, said: list[str]
) -> None:
    chosen = [engine()] if trained == "weights" else [engine(adapters="separate"), "policy.lora={rank: 4}"]
    cfg = tiny_config(tmp_path, wide_model, *chosen, RAY, "steps=3")
    original, killed = SamplerPool.load, threading.Event()

    def load(self: SamplerPool, weights: Any, version: int) -> None:
        original(self, weights, version)
        if version == 1 and not killed.is_set():
            killed.set()
            os.kill(self.pids[0], signal.SIGKILL)

    monkeypatch.setattr(SamplerPool, "load", load)
    run_training(cfg)
    assert [text for text in said if "was lost" in text] == [
        "sampler 0 was lost; another one takes its place and its work"
    ]
    steps = [record for record in read_metrics(cfg.run_dir) if "policy/loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    for record in steps:
        assert record["sampler/mismatch_mean"] <= record["sampler/mismatch_max"] < 1e-4
        assert record["policy/importance_capped"] == 0.0
    assert [{row["weight_version"] for row in read_rollouts(cfg.run_dir, step)} for step in (1, 2, 3)] == [
        {0},
        {1},
        {2},
    ]


@pytest.mark.parametrize("trained", ["weights", "separate adapters"])
def test_an_engine_spread_over_two_processes_takes_the_ranks_weights(
    ray_here: Any, tmp_path: Path, wide_model: Path, trained: str
) -> None:
    more = {} if trained == "weights" else {"adapters": "separate"}
    chosen = [engine(tensor_parallel=2, **more), *(["policy.lora={rank: 4}"] if more else [])]
    cfg = tiny_config(tmp_path, wide_model, *chosen, RAY, "steps=2")
    run_training(cfg)
    records = [record for record in read_metrics(cfg.run_dir) if "policy/loss" in record]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["sampler/mismatch_max"] < 1e-4 for record in records)


def test_an_engine_that_does_not_say_what_the_ranks_say_is_refused_before_anything_is_trained(
    ray_here: Any, tmp_path: Path, wide_model: Path
) -> None:
    cfg = tiny_config(tmp_path, wide_model, engine(dtype="bfloat16", probe_bound=1e-12), RAY)
    with pytest.raises(
        ModelError, match=r"Qwen2ForCausalLM: vLLM \S+ does not follow when this model's weights change"
    ):
        run_training(cfg)
    assert not (cfg.run_dir / "metrics.jsonl").exists()
