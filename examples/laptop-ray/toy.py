"""Two ranks, then one, resumed, at a size where nothing is learned."""

from __future__ import annotations

from pathlib import Path

from toys import priml, require, warm_start

HERE = Path(__file__).parent


def run(out: Path) -> None:
    small = ["steps=1", "filter=null", "batch.prompts=8", "data.train.count=64", "evaluate.data.count=32"]
    priml("train", HERE / "train.yaml", f"run_dir={out}", f"policy.model={warm_start()}", *small)
    # The same run, one step longer, by one rank: a finished run has a summary, so that goes first.
    (out / "summary.json").unlink()
    settings = out / "config.yaml"
    longer = settings.read_text().replace("\nsteps: 1\n", "\nsteps: 2\n").replace("\n  ranks: 2\n", "\n  ranks: 1\n")
    settings.write_text(longer)
    priml("train", out)
    (last,) = (line for line in (out / "metrics.jsonl").read_text().splitlines() if '"step": 2' in line)
    assert '"idle/sampler"' in last
    require(out / "model" / "model.safetensors")
