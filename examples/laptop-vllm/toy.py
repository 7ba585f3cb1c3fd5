"""The whole of this example at a size where nothing is learned; also with the engine in a Ray sampler."""

from __future__ import annotations

from pathlib import Path

from toys import priml, warm_start

HERE = Path(__file__).parent


def run(out: Path) -> None:
    small = ["filter=null", "batch.prompts=8", "data.train.count=64", f"policy.model={warm_start()}"]
    local, on_ray = out / "local", out / "ray"
    priml("train", HERE / "train.yaml", f"run_dir={local}", "steps=2", "evaluate.data.count=32", *small)
    priml("eval", HERE / "eval.yaml", f"run_dir={out}/eval", f"model={local}/model", "data.held_out.count=32")
    assert '"sampler/mismatch_max"' in (local / "metrics.jsonl").read_text()
    # The engine in the process of a Ray sampler, beside two ranks that hold the weights in shards.
    engine = ["evaluate=null", "sampler={kind: vllm, kv_cache_gib: 0.25}"]
    priml("train", HERE.parent / "laptop-ray" / "train.yaml", f"run_dir={on_ray}", "steps=1", *engine, *small)
    first = (on_ray / "metrics.jsonl").read_text()
    assert '"sampler/mismatch_max"' in first
    assert '"idle/sampler"' in first
