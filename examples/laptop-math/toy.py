"""The whole of this example: every command runs, nothing is learned."""

from __future__ import annotations

from pathlib import Path

from toys import priml, require, warm_start

HERE = Path(__file__).parent


def run(out: Path) -> None:
    small = ["steps=2", "filter=null", "batch.prompts=8", "data.train.count=64", "evaluate.data.count=32"]
    priml("train", HERE / "train.yaml", f"run_dir={out}", f"policy.model={warm_start()}", *small)
    priml("eval", HERE / "eval.yaml", f"run_dir={out}/eval", f"model={out}/model", "data.held_out.count=32")
    priml("report", out)
    require(out / "report.html")
