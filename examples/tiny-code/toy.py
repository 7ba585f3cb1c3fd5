"""The whole of this example: programs are tested in the sandbox, but only what a program looks like is learned."""

from __future__ import annotations

from pathlib import Path

from toys import priml, require

HERE = Path(__file__).parent


def run(out: Path) -> None:
    small = ["steps=2", "filter=null", "batch.prompts=8", "data.train.count=64", "evaluate.data.count=32"]
    short = ["data.train.length=2", "evaluate.data.length=2"]
    priml("sft", HERE / "sft.yaml", f"run_dir={out}/sft", "data.length=2", "data.count=2000")
    priml("train", HERE / "train.yaml", f"run_dir={out}", f"policy.model={out}/sft/model", *small, *short)
    short = ["data.held_out.length=2", "data.held_out.count=32"]
    priml("eval", HERE / "eval.yaml", f"run_dir={out}/eval", f"model={out}/model", *short)
    priml("report", out)
    require(out / "report.html")
