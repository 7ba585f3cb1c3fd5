"""The whole of this example: every command runs, and only what a call looks like is learned."""

from __future__ import annotations

import json
import runpy
from itertools import islice
from pathlib import Path

from toys import priml, require

HERE = Path(__file__).parent


def run(out: Path) -> None:
    calculator = runpy.run_path(str(HERE / "calculator.py"))
    for row in islice(calculator["train"](), 64):
        turns = [message["content"] for message in row["response"] if message["role"] == "assistant"]
        is_right = turns[-1] == f"\\boxed{{{row['answer']}}}"
        assert is_right or not all(calculator["judge"](row["problem"], turns)), "only a wrong turn leads elsewhere"
    rows = out / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in islice(calculator["train"](), 640)))
    data = f"{{kind: file, path: {rows}}}"
    priml("sft", HERE / "sft.yaml", f"run_dir={out}/sft", f"data={data}", "optimizer.lr=4e-3")
    small = ["steps=2", "filter=null", "batch.prompts=4", "sampling.group_size=4", "evaluate=null"]
    priml("train", HERE / "train.yaml", f"run_dir={out}", f"policy.model={out}/sft/model", *small)
    priml("report", out)
    require(out / "report.html", out / "rollouts" / "000002.parquet")
