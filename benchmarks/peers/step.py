"""What does one outcome-only step of RL cost here, and in TRL's GRPOTrainer?

Both have the same model, prompts and sizes, float32, one thread, and take turns, each in a process of its own: sample,
score, update. `full`: every response has all tokens it may have. `ragged`: a token in about 50 ends a response.

    python benchmarks/peers/step.py --out FILE.json

The first run makes `runs/benchmarks/peers` with pip, from `constraints.txt` beside this file. `--peer-python` takes an
environment that exists. Seconds are of processor time; each number is the median over the turns, the first left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = {
    "step": {"width": 256, "layers": 6, "heads": 4, "prompts": 16, "group": 8, "new_tokens": 64, "prompt_tokens": 24},
    "toy": {"width": 32, "layers": 1, "heads": 2, "prompts": 2, "group": 2, "new_tokens": 4, "prompt_tokens": 6},
}


class Worker:
    """A program beside this one: a line to it is one step, a line from it what that took."""

    def __init__(self, python: Path | str, script: str, settings: dict[str, Any]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def step(self) -> dict[str, float]:
        """One step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """The program ends when nothing more can come."""
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # libraries print, too
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a program ended without an answer: {self._process.args}")


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="toy size")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peer-python", type=Path, help="the interpreter of an environment that has TRL")
    args = parser.parse_args()
    peer = args.peer_python or make_environment(Path("runs/benchmarks/peers"))
    sizes = SIZES["toy" if args.quick else "step"]
    with tempfile.TemporaryDirectory() as folder:
        given = sizes | make_model(Path(folder), sizes)
        rows = [row for case in ("full", "ragged") for row in measure(case, given, peer, args.turns)]
    headline = {case: compare([row for row in rows if row["case"] == case]) for case in ("full", "ragged")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pinned = (HERE / "constraints.txt").read_text().split()
    facts = {"cores": os.cpu_count(), "threads": 1, "device": "cpu", "sizes": sizes}
    versions = [line for line in pinned if "==" in line]
    result = {"name": "peers/step", "versions": versions, "machine": facts, "headline": headline, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(headline, indent=1))


def make_model(folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """The model that both begin with, and prompts for many steps."""
    from priml.models.tiny import character_tokenizer, tiny_model

    tokenizer = character_tokenizer()
    module = tiny_model(tokenizer, width=sizes["width"], layers=sizes["layers"], heads=sizes["heads"], seed=0)
    module.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(60, 64)]  # a token in about 50
    module.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    prompts = ["".join(rng.choices("abcdefgh", k=sizes["prompt_tokens"])) for _ in range(64 * sizes["prompts"])]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": "-"}) + "\n" for p in prompts))
    return {"model": str(folder / "model"), "data": str(folder / "prompts.jsonl")}


def make_environment(folder: Path) -> Path:
    """An environment with the peer, made once. Returns its interpreter."""
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        venv.create(folder, with_pip=True)
        pinned = HERE / "constraints.txt"
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", pinned], check=True)
        (folder / ".made").touch()
    return python


def measure(case: str, sizes: dict[str, Any], peer: Path, turns: int) -> list[dict[str, Any]]:
    """A row per turn and program; the first turn of each is left out."""
    settings = sizes | {"ragged": case == "ragged", "steps": turns + 1}
    workers = {
        "priml": Worker(sys.executable, "ours.py", settings),
        "trl": Worker(peer, "trl_grpo.py", settings),
    }
    rows = []
    for turn in range(-1, turns):
        for name, worker in workers.items():
            answer = worker.step()
            if turn >= 0:
                rows.append({"case": case, "program": name, "turn": turn} | answer)
    for worker in workers.values():
        worker.close()
    return rows


def compare(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each program, and how many times as much the peer needs."""
    found: dict[str, Any] = {}
    for name in ("priml", "trl"):
        own = [row for row in rows if row["program"] == name]
        found[name] = {key: statistics.median(row[key] for row in own) for key in ("cpu_s", "wall_s", "peak_mib")}
        found[name]["cpu_s_per_1000_tokens"] = statistics.median(1000 * row["cpu_s"] / row["tokens"] for row in own)
    for key in ("cpu_s_per_1000_tokens", "peak_mib"):
        found[f"times_{key}"] = round(found["trl"][key] / found["priml"][key], 2)
    return found


if __name__ == "__main__":
    main()
