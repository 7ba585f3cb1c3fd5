"""Runs on Ray: the local run's numbers, any number of ranks, and what happens when processes end or hang."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fakes import read_metrics, read_rollouts, timeless, tiny_config
from priml.commands.train import run_training
from priml.config.load import dump_config, load_config
from priml.config.train import TrainConfig
from priml.distributed.ray.ranks import RankGroup
from priml.errors import ModelError, RankLostError, RunError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]  # each starts half a dozen processes

ROOT = Path(__file__).parents[2]
HELD_OUT = "{kind: walk, split: held_out, length: 2, states: 4, operations: 5, count: 6}"
EVALUATED = f"evaluate={{data: {HELD_OUT}, every: 1}}"
EACH_STEP = "checkpoint={every: 1, keep: 9}"
ABSOLUTE = 1e-4
"""Of metrics and weights after three steps at a learning rate of 1e-3, all in float32; the tokens are the same."""


def on_ray(**settings: Any) -> str:
    chosen = {"kind": "ray", "ranks": 2, "samplers": 1, "micro_batch_tokens": 40, "device": "cpu"} | settings
    return "backend={" + ", ".join(f"{key}: {value}" for key, value in chosen.items()) + "}"


def go_on(run_dir: Path, *, steps: int, ranks: int) -> None:
    """A finished run made longer, by another number of ranks."""
    (run_dir / "summary.json").unlink()
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    settings["steps"] = steps
    settings["backend"]["ranks"] = ranks
    (run_dir / "config.yaml").write_text(yaml.safe_dump(settings))
    run_training(run_dir)


def assert_alike(local: Path, other: Path, *, steps: int, models: Sequence[str] = ("model", "prm")) -> None:
    """The same tokens; numbers and weights within `ABSOLUTE`."""
    ours, theirs = timeless(read_metrics(local)), timeless(read_metrics(other))
    excluded = ("digest/", "idle/", "eval/sampled")
    for expected, found in zip(ours, theirs, strict=True):
        numbers = {name: value for name, value in expected.items() if not name.startswith(excluded)}
        assert {name: found[name] for name in numbers} == pytest.approx(numbers, abs=ABSOLUTE, rel=1e-3)
    for step in range(1, steps + 1):
        expected, found = read_rollouts(local, step), read_rollouts(other, step)
        for column in (
            "problem_id",
            "response_ids",
            "segments",
            "turn_rewards",
            "sample",
            "weight_version",
            "prm_version",
            "outcome",
            "filter_status",
        ):
            assert [row[column] for row in found] == [row[column] for row in expected]
    for name in models:
        expected, found = (load_file(run / name / "model.safetensors") for run in (local, other))
        for key in expected.keys() | found.keys():
            torch.testing.assert_close(found[key], expected[key], atol=ABSOLUTE, rtol=0)


def watched(monkeypatch: pytest.MonkeyPatch, act: Callable[[RankGroup], None]) -> None:
    """Call `act` on the first group of ranks that is ready, in a thread beside the run."""
    original = RankGroup.wait
    begun: list[RankGroup] = []

    def wait(self: RankGroup) -> dict[str, Any]:
        facts = original(self)
        if not begun:
            begun.append(self)
            threading.Thread(target=act, args=(self,), daemon=True).start()
        return facts

    monkeypatch.setattr(RankGroup, "wait", wait)


def until(condition: Callable[[], bool], *, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_functions_of_the_user_do_the_same_on_ranks(
    ray_here: Any, tmp_path: Path, warm_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the settings name `examples/custom/parts.py`
    common = [f"policy.model={warm_model}", "steps=2", "batch.prompts=4", "sampling.max_new_tokens=6", EACH_STEP]
    runs = {"local": "backend={device: cpu, micro_batch_tokens: 40}", "ray": on_ray()}
    for name, backend in runs.items():
        changes = [f"run_dir={tmp_path / name}", *common, backend]
        run_training(load_config(TrainConfig, ROOT / "examples" / "custom" / "train.yaml", changes))
    assert_alike(tmp_path / "local", tmp_path / "ray", steps=2, models=("model",))
    rows = read_rollouts(tmp_path / "ray", 2)
    assert any(sum(row["process_rewards"]) > 0 for row in rows), "the user's reward model paid something"
    assert (tmp_path / "ray" / "outcome.csv").is_file()


def test_turns_that_are_sampled_while_ranks_train_are_those_of_one_process(
    ray_here: Any, tmp_path: Path, warm_model: Path
) -> None:
    tool = tmp_path / "tool.py"
    tool.write_text(
        "class Tool:\n"
        "    def reset(self, problem): self.turns = 0\n"
        "    def step(self, text):\n"
        "        self.turns += 1\n"
        "        return '=', 0.5 * (len(text) < 2), self.turns == 2\n"
        "    def close(self): pass\n"
    )
    common = (f'environment={{kind: custom, function: "{tool}:Tool"}}', "sampling.max_staleness=1", "steps=3")
    copies = "sampler={kind: transformers, copy_weights: true}"
    local = tiny_config(tmp_path / "local", warm_model, *common, EVALUATED, copies)
    cfg = tiny_config(tmp_path / "ray", warm_model, *common, EVALUATED, on_ray(colocate="false"))
    for each in (local, cfg):
        run_training(each)
    assert_alike(local.run_dir, cfg.run_dir, steps=3)
    rows = [row for step in (1, 2, 3) for row in read_rollouts(cfg.run_dir, step)]
    assert {row["weight_version"] for row in rows} == {0, 1}
    assert any(len(row["segments"]) == 3 for row in rows)


def test_two_ranks_then_one_then_two_make_the_local_run(ray_here: Any, tmp_path: Path, warm_model: Path) -> None:
    common = (EVALUATED, EACH_STEP, "prm.loss=pairwise", "prm.replay={passes: 1}")
    local = tiny_config(tmp_path / "local", warm_model, *common, "steps=3")
    run_training(local)
    cfg = tiny_config(tmp_path / "ray", warm_model, *common, "steps=1", on_ray())
    run_training(cfg)
    go_on(cfg.run_dir, steps=2, ranks=1)
    go_on(cfg.run_dir, steps=3, ranks=2)
    assert_alike(local.run_dir, cfg.run_dir, steps=3)
    record = read_metrics(cfg.run_dir)[1]
    assert all(0.0 <= record[f"idle/{name}"] <= 1.0 for name in ("trainer", "sampler", "verifier"))


def test_without_a_prm_and_with_a_critic_it_is_the_local_run_too(
    ray_here: Any, tmp_path: Path, warm_model: Path
) -> None:
    critic = ("prm=null", "advantage.estimator=ppo", "critic={optimizer: {lr: 1.0e-3}, mini_batch: 12}")
    local = tiny_config(tmp_path / "local", warm_model, *critic)
    cfg = tiny_config(tmp_path / "ray", warm_model, *critic, on_ray(colocate="false"))
    for each in (local, cfg):
        run_training(each)
        shutil.copytree(each.run_dir / "critic", each.run_dir / "prm")
    assert_alike(local.run_dir, cfg.run_dir, steps=2)


def test_with_adapters_it_is_the_local_run_too(
    ray_here: Any, tmp_path: Path, warm_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = ("policy.lora={rank: 4}", "prm.lora={rank: 4}", "loss.kl={weight: 0.1}")
    local = tiny_config(tmp_path / "local", warm_model, *adapters)
    cfg = tiny_config(tmp_path / "ray", warm_model, *adapters, on_ray())
    sent: list[set[str]] = []
    gather = RankGroup.gather

    def noted(self: RankGroup, *weights: Any) -> Any:
        reference = gather(self, *weights)
        sent.append(set(ray_here.get(reference)))
        return reference

    monkeypatch.setattr(RankGroup, "gather", noted)
    for each in (local, cfg):
        run_training(each)
    assert_alike(local.run_dir, cfg.run_dir, steps=2)
    assert len(sent) == 2
    assert all(names and all(".lora_" in name for name in names) for names in sent), "the others never travel"


def test_on_two_nodes_it_is_the_local_run_too(tmp_path: Path, warm_model: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster  # pyright: ignore

    local = tiny_config(tmp_path / "local", warm_model, "checkpoint={every: null}")
    run_training(local)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=3)
        backend = on_ray(address=nodes.address, placement="spread")
        cfg = tiny_config(tmp_path / "ray", warm_model, "checkpoint={every: null}", backend)
        (tmp_path / "train.yaml").write_text(dump_config(cfg))
        command = [sys.executable, "-m", "priml.cli.main", "train", str(tmp_path / "train.yaml")]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        nodes.shutdown()
    assert "2 ranks on 2 nodes" in done.stderr + done.stdout
    assert_alike(local.run_dir, cfg.run_dir, steps=2)


def test_a_model_without_all_its_weights_is_refused_at_once_whoever_waits_for_them(
    ray_here: Any, tmp_path: Path, warm_model: Path
) -> None:
    shutil.copytree(warm_model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, {"format": "pt"})
    cfg = tiny_config(tmp_path, tmp_path / "model", on_ray())
    with pytest.raises(ModelError, match=r"1 weights of .* are missing, the first model.norm.weight"):
        run_training(cfg)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_that_loses_a_rank_begins_again_by_itself_and_ends_as_if_nothing_had_been(
    ray_here: Any, tmp_path: Path, warm_model: Path, monkeypatch: pytest.MonkeyPatch, victim: int, said: list[str]
) -> None:
    local = tiny_config(tmp_path / "local", warm_model, EACH_STEP, "steps=3")
    run_training(local)
    cfg = tiny_config(tmp_path / "ray", warm_model, EACH_STEP, "steps=3", on_ray())

    def kill(ranks: RankGroup) -> None:
        pid = ranks.pids[victim]
        until((cfg.run_dir / "checkpoints" / "000001").is_dir)
        os.kill(pid, signal.SIGKILL)

    watched(monkeypatch, kill)
    run_training(cfg)
    lost = [text for text in said if "was lost" in text]
    assert len(lost) == 1
    assert lost[0].startswith(f"rank {victim} of 2 was lost")
    assert "beginning again from checkpoint 00000" in lost[0]
    assert_alike(local.run_dir, cfg.run_dir, steps=3)


def test_a_rank_is_lost_only_so_often(
    ray_here: Any, tmp_path: Path, warm_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(tmp_path, warm_model, "steps=50", on_ray(restarts=0))
    watched(monkeypatch, lambda ranks: os.kill(ranks.pids[0], signal.SIGKILL))
    with pytest.raises(RankLostError, match=r"rank 0 of 2 was lost: its process ended.*; go on with: priml train"):
        run_training(cfg)


def test_a_rank_that_hangs_is_named_with_what_it_was_doing(
    ray_here: Any, tmp_path: Path, warm_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config(tmp_path, warm_model, "steps=500", on_ray(collective_timeout=20))
    stopped: list[int] = []

    def stop(ranks: RankGroup) -> None:
        stopped.append(ranks.pids[1])
        until(lambda: (cfg.run_dir / "metrics.jsonl").is_file())
        os.kill(stopped[0], signal.SIGSTOP)

    watched(monkeypatch, stop)
    try:
        with pytest.raises(RunError, match=r"rank 1 did not join the others within 20 s. Last heard of: rank 0 \w+"):
            run_training(cfg)
    finally:
        os.kill(stopped[0], signal.SIGKILL)
