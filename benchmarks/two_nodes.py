"""Does the laptop task reach the same accuracy on two nodes as in one process?

    local     one process: policy, PRM, reference and the transformers sampler
    engine    the same with vLLM as the sampler, which gives other responses
    cluster   Ray on two logical nodes of this machine: one of two ranks on each (FSDP2 over gloo), vLLM as the sampler

Warm start, problems and settings are the same. Only `backend` and `sampler` differ. It needs Ray and vLLM in one
environment (`make setup-vllm`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import BACKEND, LAPTOP, TOY, Setup, arguments, train_config, warm_start, write_results
from priml.commands.train import run_training
from priml.config.train import TrainConfig

ARMS = ("local", "engine", "cluster")
ENGINE = {"kind": "vllm", "kv_cache_gib": 0.5}


def main() -> None:
    """Train both, and write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/two-nodes"), help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    options = parser.parse_args()
    setup, steps = (TOY, 2) if options.quick else (LAPTOP, 40)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        model = warm_start(setup, options.models, seed=seed).resolve()
        for arm in options.arms:
            with two_nodes() if arm == "cluster" else here(engine=arm == "engine") as backend:
                folder = (options.runs / f"{arm}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
                cfg = settings(setup, model, seed, steps, folder, backend)
                rows.append({"arm": arm, "seed": seed, **outcome(run_training(cfg), folder)})
    write_results(options.out, "two_nodes", rows=rows, headline=headline(rows))


@contextmanager
def here(*, engine: bool) -> Iterator[dict[str, Any]]:
    """This process."""
    yield {"backend": BACKEND} | ({"sampler": ENGINE} if engine else {})


@contextmanager
def two_nodes() -> Iterator[dict[str, Any]]:
    """Two nodes with a rank each, and room for a sampler and a verifier."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=2)
        ray = {"kind": "ray", "address": nodes.address, "ranks": 2, "placement": "spread", **BACKEND}
        yield {"backend": ray, "sampler": ENGINE}
    finally:
        nodes.shutdown()


def settings(setup: Setup, model: Path, seed: int, steps: int, folder: Path, backend: dict[str, Any]) -> TrainConfig:
    """Those of `examples/laptop-math`, with the given backend."""
    held_out = {**setup.task, "split": "held_out", "count": 256, "seed": seed}
    evaluate = {"every": max(steps // 4, 1), "data": held_out, "samples": 4}
    return train_config(setup, model, seed=seed, run_dir=str(folder), steps=steps, evaluate=evaluate, **backend)


def outcome(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the docs quote of a run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "policy/loss" in record]
    found: dict[str, Any] = {"accuracy": summary["accuracy"], "steps": len(steps), "seconds": summary["seconds"]}
    for name in ("time/step", "idle/trainer", "idle/sampler", "sampler/mismatch_mean", "sampler/mismatch_max"):
        values = [record[name] for record in steps if name in record]
        if values:
            found[name] = max(values) if name.endswith("max") else statistics.median(values)
    return found


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Held-out accuracy before and after, per arm and seed."""
    return {
        f"{row['arm']}, seed {row['seed']}": {
            f"{how} {when}": round(row["accuracy"][when][how]["mean"], 4)
            for when in ("before", "after")
            for how in ("greedy", "sampled")
        }
        | {"median step s": round(row["time/step"], 2)}
        for row in rows
    }


if __name__ == "__main__":
    main()
