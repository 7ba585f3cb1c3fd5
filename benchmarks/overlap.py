"""How much time does it save to grade finished responses while the others are still being sampled?

    math      the math verifier: answers graded in microseconds
    program   a verifier that takes 20 ms and grades one response at a time
    service   an asynchronous verifier that answers after 200 ms, up to 16 responses at once

Two ways take turns on the same prompts and random numbers, so the responses are the same: sample, then verify; or
verify each response when it ends. `waited_s` is how long the step waits for verdicts after sampling.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

from common import LAPTOP, TOY, Parts, arguments, assemble, train_config, warm_start, write_results
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_collect_spec
from priml.graders.custom import CustomVerifier
from priml.graders.pool import VerifierPool
from priml.types import Problem


def main() -> None:
    """Measure, and write the JSON."""
    options = arguments(__doc__).parse_args()
    setup, turns = (TOY, 2) if options.quick else (LAPTOP, 7)
    cfg = train_config(setup, warm_start(setup, options.models, seed=0), seed=0)
    parts = assemble(cfg)
    pools = {
        "math": parts.verify,
        "program": VerifierPool(CustomVerifier(program, name="program")),
        "service": VerifierPool(CustomVerifier(service, name="service")),
    }
    rows = list(measure(parts, cfg, pools, turns))
    write_results(options.out, "overlap", rows=rows, headline=headline(rows))


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
