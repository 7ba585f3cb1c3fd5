"""Label the steps of sampled responses: `label_steps.py SETTINGS RESPONSES OUT`, in the form of ProcessBench.

The chain task knows the truth about every step, which no labeller of real solutions does. The PRM has never seen it.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from priml.config.data import ChainSource
from priml.config.eval import EvalConfig
from priml.config.load import load_config
from priml.factories.data import build_task
from priml.types import Problem


def main(settings: Path, responses: Path, out: Path) -> None:
    """One row per response that says something: its states are the steps, the boxed answer is the last one."""
    source = (load_config(EvalConfig, settings).data or {})["test"]
    assert isinstance(source, ChainSource), "the settings are those of this example"
    task = build_task(source)
    with out.open("w", encoding="utf-8") as file:
        for number, row in enumerate(pq.read_table(responses).to_pylist()):
            judgement = task.judge_steps(Problem(row["problem_id"], row["prompt"], row["gold"]), row["response"])
            cuts = [0, *(end + 1 for end in judgement.ends), len(row["response"])]
            steps = [row["response"][start:end] for start, end in pairwise(cuts)]
            if len(steps) > 1 and steps[-1]:
                label = -1 if judgement.first_wrong is None else judgement.first_wrong
                solution = {"id": f"chain-{number}", "problem": row["prompt"], "steps": steps, "label": label}
                file.write(json.dumps(solution) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
