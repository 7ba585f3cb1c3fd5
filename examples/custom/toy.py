"""Two steps of the run, with all seven parts."""

from __future__ import annotations

from pathlib import Path

from toys import priml, require, warm_start

HERE = Path(__file__).parent


def run(out: Path) -> None:
    priml("train", HERE / "train.yaml", f"run_dir={out}", f"policy.model={warm_start()}", "steps=2")
    require(out / "outcome.csv", out / "model" / "model.safetensors")
