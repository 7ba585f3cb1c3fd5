"""What waiting costs a step, and what hides it. Two parts, chosen by `--part`.

verdicts    How much time does it save to grade finished responses while the others are still being sampled?
            math      the math verifier: answers graded in microseconds
            program   a verifier that takes 20 ms and grades one response at a time
            service   an asynchronous verifier that answers after 200 ms, up to 16 responses at once
            Two ways take turns on the same prompts and random numbers, so the responses are the same: sample, then
            verify; or verify each response when it ends. `waited_s` is how long the step waits for verdicts.
staleness   How much does it save to sample the next batch while this one is trained on, and what does it cost?
            `sampling.max_staleness` 0, 1, 2 and 4, with verdicts that take 200 ms each, up to 16 at once. Whole runs
            through `priml train`, the same number of rollouts in each. `step_s` is the median of steps after the third.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common import LAPTOP, TOY, Parts, Setup, arguments, assemble, train_config, warm_start, write_results
from priml.commands.train import run_training
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_collect_spec
from priml.graders.custom import CustomVerifier
from priml.graders.math import grade
from priml.graders.pool import VerifierPool
from priml.types import Problem, Verdict


def main() -> None:
    """Measure, and write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=("verdicts", "staleness"), help="one of them alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bounds", type=int, nargs="+", default=[0, 1, 2, 4], help="of staleness; 0 comes first")
    parser.add_argument("--steps", type=int, default=40, help="of each run for staleness")
    options = parser.parse_args()
    setup = TOY if options.quick else LAPTOP
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    if options.part != "staleness":
        rows += verdicts(setup, options.models, turns=2 if options.quick else 7)
        found |= headline(rows)
    if options.part != "verdicts":
        steps, seeds, bounds = (4, [0], [0, 1]) if options.quick else (options.steps, options.seeds, options.bounds)
        problems = 8 if options.quick else 256
        stale = [row for seed in seeds for row in staleness(setup, options.models, bounds, steps, seed, problems)]
        rows += stale
        found |= {"staleness": compare_staleness(stale)}
    write_results(options.out, "overlap", rows=rows, headline=found)


def verdicts(setup: Setup, models: Path, *, turns: int) -> list[dict[str, Any]]:
    """A row per turn, judge and way."""
    cfg = train_config(setup, warm_start(setup, models, seed=0), seed=0)
    parts = assemble(cfg)
    pools = {
        "math": parts.verify,
        "program": VerifierPool(CustomVerifier(f"{__file__}:program")),
        "service": VerifierPool(CustomVerifier(f"{__file__}:service")),
    }
    return list(measure(parts, cfg, pools, turns))


def staleness(
    setup: Setup, models: Path, bounds: list[int], steps: int, seed: int, problems: int
) -> Iterator[dict[str, Any]]:
    """A row for each bound: one run, evaluated on so many problems."""
    model = warm_start(setup, models, seed=seed)
    for bound in bounds:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            cfg = train_config(
                setup,
                model,
                seed=seed,
                run_dir=str(Path(folder) / "run"),
                steps=steps,
                sampling={
                    "group_size": setup.group_size,
                    "max_new_tokens": setup.task["length"] + 17,
                    "max_staleness": bound,
                },
                sampler={"kind": "transformers", "copy_weights": True},
                batch={"prompts": setup.prompts // 2},
                filter=None,
                verify={"kind": "custom", "function": f"{__file__}:slow_judge"},
                evaluate={"data": {**setup.task, "split": "held_out", "count": problems, "seed": seed}, "samples": 4},
            )
            summary = run_training(cfg)
            records = [json.loads(line) for line in (cfg.run_dir / "metrics.jsonl").read_text().splitlines()]
        late = [record for record in records if record["step"] > 3]
        sampled = sum(record["filter/sampled"] for record in records[1:])
        trained = sum(record["filter/kept"] for record in records[1:])
        yield {
            "part": "staleness",
            "bound": bound,
            "seed": seed,
            "step_s": statistics.median(record["time/step"] for record in late),
            "cpu_s": (time.process_time() - began) / steps,
            "staleness_mean": statistics.mean(record["sampler/staleness_mean"] for record in late),
            "waits_s": statistics.median(record.get("time/collect", 0.0) for record in late),
            "dropped": 1 - trained / sampled,
            "greedy": summary["accuracy"]["after"]["greedy"]["mean"],
            "sampled": summary["accuracy"]["after"]["sampled"]["mean"],
        }


async def slow_judge(problem: Problem, response: str) -> Verdict:
    """The math verifier, as far away as another machine."""
    await asyncio.sleep(0.2)
    return grade(response, problem.answer)


def compare_staleness(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each bound: seconds of a step and their ratio to taking turns, and the accuracies of all seeds."""
    found: dict[str, Any] = {}
    in_turns = {row["seed"]: row["step_s"] for row in rows if row["bound"] == 0}
    for bound in dict.fromkeys(row["bound"] for row in rows):
        chosen = [row for row in rows if row["bound"] == bound]
        found[str(bound)] = {
            "step_s": round(statistics.median(row["step_s"] for row in chosen), 3),
            "ratio": round(statistics.median(row["step_s"] / in_turns[row["seed"]] for row in chosen), 3),
            "cpu_s": round(statistics.median(row["cpu_s"] for row in chosen), 3),
            "staleness": round(statistics.mean(row["staleness_mean"] for row in chosen), 2),
            "dropped": round(max(row["dropped"] for row in chosen), 3),
            "greedy": sorted(round(row["greedy"], 3) for row in chosen),
            "sampled": sorted(round(row["sampled"], 3) for row in chosen),
        }
    return found


def program(problem: Problem, response: str) -> bool:
    """As long as a program takes in the sandbox on a slow machine."""
    time.sleep(0.02)
    return problem.answer in response


async def service(problem: Problem, response: str) -> bool:
    """As long as a request to another machine takes."""
    await asyncio.sleep(0.2)
    return problem.answer in response


def measure(parts: Parts, cfg: TrainConfig, pools: Mapping[str, VerifierPool], turns: int) -> Iterator[dict[str, Any]]:
    """A row per turn, judge and way; the first round of each judge, which starts workers, is left out."""
    for judge, pool in pools.items():
        for turn in range(-1, turns):
            for overlaps in (False, True):
                prompts = parts.stream.take(cfg.batch.prompts)
                parts.stream.put_back(prompts)  # everybody samples the same
                began = time.perf_counter()
                sampling = build_collect_spec(cfg).sampling_at(turn)
                groups = parts.sampler.sample(prompts, sampling, pool.submit if overlaps else None)
                sampled = time.perf_counter()
                outcomes = [v.label for group in pool(groups) for v in group.verdicts]
                ended = time.perf_counter()
                if turn >= 0:
                    yield {
                        "judge": judge,
                        "turn": turn,
                        "overlaps": overlaps,
                        "responses": len(outcomes),
                        "sample_s": sampled - began,
                        "waited_s": ended - sampled,
                        "round_s": ended - began,
                    }


def headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians per judge, apart and overlapped."""
    found: dict[str, Any] = {}
    for judge in dict.fromkeys(row["judge"] for row in rows):
        found[judge] = {}
        for key in ("waited_s", "round_s"):
            separate, overlapped = (
                statistics.median(r[key] for r in rows if (r["judge"], r["overlaps"]) == (judge, way))
                for way in (False, True)
            )
            found[judge] |= {f"{key}_apart": round(separate, 3), f"{key}_overlapped": round(overlapped, 3)}
    return found


if __name__ == "__main__":
    main()
