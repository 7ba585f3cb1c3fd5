"""The whole of this example at a size where next to nothing is learned."""

from __future__ import annotations

import runpy
from pathlib import Path

from toys import priml, require, warm_start

HERE = Path(__file__).parent


def run(out: Path) -> None:
    model = f"model={warm_start()}"
    few = ["data.train.count=24", "data.test.count=8"]
    priml("eval", HERE / "eval.yaml", f"run_dir={out}/responses", model, *few)
    train, test = (out / "responses" / f"{name}.parquet" for name in ("train", "test"))
    short = ["batch=64", "epochs=1"]
    priml("prm", "train", HERE / "prm-train.yaml", f"run_dir={out}/prm", model, f"data.path={train}", *short)
    priml("report", out / "prm")
    prm = f"prm.model={out}/prm/model"
    priml("prm", "score", HERE / "prm-score.yaml", f"run_dir={out}/scores", prm, f"data.path={test}")
    priml("prm", "rank", HERE / "prm-rank.yaml", f"run_dir={out}/rank", f"data.path={out}/scores/scores.parquet")
    labelled = out / "process.jsonl"
    runpy.run_path(str(HERE / "label_steps.py"))["main"](HERE / "eval.yaml", test, labelled)
    given = [f"data.chain.path={labelled}", f"training.responses={train}"]
    fixed = "threshold={kind: fixed, value: 0.0}"  # of responses that are all wrong none can be chosen
    priml("prm", "evaluate", HERE / "prm-evaluate.yaml", f"run_dir={out}/evaluation", prm, *given, fixed)
    require(*(out / name / "report.html" for name in ("prm", "scores", "rank")), out / "evaluation" / "evaluation.json")
