"""Made-up problems in the form of Eurus-2-RL-Data and of GSM8K: `python toy_rows.py FILE (math|code|gsm8k)...`."""

import json
import sys
from pathlib import Path
from typing import Any

SYSTEM = "When tackling complex reasoning tasks, you have access to the following actions."


def row(number: int, kind: str) -> dict[str, Any]:
    """A problem that a child can solve, and no tiny model."""
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


if __name__ == "__main__":
    path, *kinds = sys.argv[1:]
    rows = [row(number, kind) for number in range(16) for kind in kinds]
    Path(path).write_text("".join(json.dumps(each) + "\n" for each in rows))
