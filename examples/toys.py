"""Examples at toy size, one after another in one process: `python examples/toys.py NAME...`, or `make example NAME=x`.

Each example has a `toy.py` whose `run(out)` gives every command of the example at a size where nothing is learned, and
writes into the folder `out`. What several of them need is here.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
SYSTEM = "When tackling complex reasoning tasks, you have access to the following actions."


def priml(*words: object) -> None:
    """A `priml` command in this process."""
    from priml.cli.main import main

    print("priml", *words, flush=True)
    code = main([str(word) for word in words])
    if code:
        raise SystemExit(code)


def warm_start() -> Path:
    """The supervised model of laptop-math after 960 examples, made once in the folder that PRIML_TOYS names."""
    folder = Path(os.environ["PRIML_TOYS"]) / "laptop-math"
    if not (folder / "summary.json").is_file():
        priml("sft", EXAMPLES / "laptop-math" / "sft.yaml", f"run_dir={folder}", "data.count=960")
    return folder / "model"


def plan_and_train(settings: Path, out: Path, *kinds: str, plan: str) -> None:
    """The plan of a recipe for a machine, then one step with the tiny model and made-up problems of some kinds.

    The step runs in one process and with the transformers sampler, since Ray and vLLM have examples of their own.
    """
    priml("plan", settings, *plan.split())
    problems = out / "problems.jsonl"
    problems.write_text("".join(json.dumps(_row(i, kind)) + "\n" for i in range(16) for kind in kinds))
    data = f"{{kind: file, path: {problems}}}"
    small = ["steps=1", "batch.prompts=4", "batch.draw=4", "filter=null", "overlong={kind: keep}"]
    priml(
        *("train", settings, f"run_dir={out}", f"policy.model={warm_start()}"),
        *(f"data.train={data}", f"evaluate.data={data}", *small, "sampling.max_new_tokens=24"),
        *("backend={kind: local, micro_batch_tokens: 4096}", "sampler={kind: transformers}"),
    )
    priml("report", out)
    require(out / "report.html", out / "model" / "model.safetensors")


def require(*files: Path) -> None:
    """All of them hold something."""
    for file in files:
        assert file.stat().st_size > 0, f"{file} is empty"


def _row(number: int, kind: str) -> dict[str, Any]:
    """A problem in the form of Eurus-2-RL-Data or of GSM8K that a child can solve, and no tiny model."""
    if kind == "gsm8k":
        question = f"{number} apples and {number + 2} pears: how many?"
        return {"question": question, "answer": f"{number}+{number + 2}\n#### {2 * number + 2}"}
    if kind == "math":
        question = f"What is {number} + {number}?\n\nPresent the answer in LaTex format: \\boxed{{Your answer}}"
        truth = str(2 * number)
    else:
        question = f"Read a number and print it plus {number}.\n\nWrite Python code to solve the problem."
        truth = json.dumps({"inputs": ["1\n", "5\n"], "outputs": [f"{1 + number}\n", f"{5 + number}\n"]})
    return {
        "data_source": {"math": "numina_synthetic_math", "code": "taco"}[kind],
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        "ability": kind,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": "dummy", "index": 0},
    }


def main(names: list[str]) -> None:
    """Run them; without PRIML_TOYS the tiny model goes when they are done."""
    known = sorted(path.parent.name for path in EXAMPLES.glob("*/toy.py"))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        sys.exit(f"found {' '.join(unknown) or 'no example'}, need NAME=x, where x is some of: {' '.join(known)}")
    with contextlib.ExitStack() as stack:
        if "PRIML_TOYS" not in os.environ:
            os.environ["PRIML_TOYS"] = stack.enter_context(tempfile.TemporaryDirectory())
        for name in names:
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as out:
                runpy.run_path(str(EXAMPLES / name / "toy.py"))["run"](Path(out))
            print(f"example {name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
