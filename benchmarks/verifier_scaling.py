"""How does grading scale with the number of verifier actors on Ray, and what do the actors themselves cost?

    math     real verdicts of the math verifier: the labelled pairs of `--dev`, or those of our tests if it is absent
    waiting  an asynchronous verifier that sleeps for 50 ms. It needs no processor, so what it misses of the ideal is
             overhead

Each is graded by the local pool (threads of this process) and by pools of 1, 2 and 4 actors. They take turns on the
same responses within one Ray instance. A row has responses per second, the share of the time in which the actors had
nothing to do, and the share of the ideal that `waiting` reached: responses x 50 ms / responses that can be graded at
once. More actors than cores cannot make `math` faster. The rows have the number of cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import arguments, write_results
from priml.config.graders import MathVerifier
from priml.distributed.ray.cluster import Cluster, ClusterTopology
from priml.distributed.ray.graders import VERIFIER_THREADS, VerifierActor, VerifierActors
from priml.factories.graders import Judge, build_verifier
from priml.graders.custom import CustomVerifier
from priml.graders.pool import THREADS, VerifierPool
from priml.types import Group, Problem, Prompt, Segment, Trajectory

ROOT = Path(__file__).parent.parent
ACTORS = (1, 2, 4)
WAIT_S = 0.05


@dataclass(frozen=True)
class Arm:
    """One way of grading."""

    judge: str
    actors: int
    """0: the local pool."""
    pool: VerifierPool
    slots: int
    """Responses that can be judged at once."""
    idle: Callable[[float], float] | None
    """Share of so many seconds in which the actors had nothing to do."""


def main() -> None:
    """Measure, and write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--dev", type=Path, default=ROOT.parent / "shared" / "data" / "math_grading_dev.jsonl")
    options = parser.parse_args()
    turns, counts = (5, {"math": 200, "waiting": 64}) if options.quick else (7, {"math": 1600, "waiting": 320})
    pairs = list(make_pairs(options.dev))
    work = {judge: group_by_problem([pairs[i % len(pairs)] for i in range(count)]) for judge, count in counts.items()}
    makes = {"math": partial(build_verifier, MathVerifier()), "waiting": waiting}
    topology = ClusterTopology(
        ranks=1, samplers=1, verifiers=len(makes) * sum(ACTORS), colocate=True, sampler_devices=1, spread=False
    )
    cluster = Cluster(topology, address=None, device="cpu")
    try:
        arms = [arm for judge, make in makes.items() for arm in measure_arms(cluster, judge, make, work[judge])]
        rows = list(measure(arms, work, turns))
    finally:
        cluster.close()
    write_results(options.out, "verifier_scaling", rows=rows, headline=headline(rows))


# --- responses ---------------------------------------------------------------------------------------------------


def make_pairs(dev: Path) -> Iterator[tuple[str, str]]:
    """Responses and gold answers."""
    if dev.exists():
        yield from ((row["prediction"], row["gold"]) for row in _lines(dev))
    else:
        own = _lines(ROOT / "tests" / "graders" / "math" / "fixtures" / "math_pairs.jsonl")
        yield from ((rf"\boxed{{{row['answer']}}}", row["gold"]) for row in own)


def group_by_problem(pairs: Sequence[tuple[str, str]]) -> list[Group]:
    """Each a problem with one response."""
    return [
        Group(
            prompt=Prompt(Problem(id=str(index), prompt="", answer=gold), "", (1,)),
            trajectories=(
                Trajectory((Segment(np.array([1], np.int32), np.zeros(1, np.float32), 0),), response, "stop", sample=0),
            ),
        )
        for index, (response, gold) in enumerate(pairs)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- judges ------------------------------------------------------------------------------------------------------


def waiting(problems: Sequence[Problem]) -> Judge:
    """As long as a request to another machine takes; asynchronous, since plain functions are called one at a time."""
    return Judge(CustomVerifier(f"{__file__}:wait"), ())


async def wait(problem: Problem, response: str) -> bool:
    """Say yes to everything, later."""
    await asyncio.sleep(WAIT_S)
    return True


def measure_arms(
    cluster: Cluster, judge: str, make: Callable[[Sequence[Problem]], Judge], groups: Sequence[Group]
) -> Iterator[Arm]:
    """The local pool, and one on Ray for each number of actors; all stay alive while they take turns."""
    problems = [group.prompt.problem for group in groups]
    yield Arm(judge, 0, VerifierPool(make(problems).verifier), THREADS, None)
    for count in ACTORS:
        actors = VerifierActors(
            lambda problems: cluster.verifier(VerifierActor, make, problems, os.getcwd(), threads=VERIFIER_THREADS),
            problems,
            count,
        )
        actors.isolation()  # waits until they are ready
        idle = partial(_idle, actors)
        yield Arm(judge, count, VerifierPool(actors, threads=actors.size), actors.size, idle)


def _idle(actors: VerifierActors, elapsed_s: float) -> float:
    return actors.busy.idle_share(elapsed_s, processes=actors.size)


# --- measured ----------------------------------------------------------------------------------------------------


def measure(arms: Sequence[Arm], work: Mapping[str, Sequence[Group]], turns: int) -> Iterator[dict[str, Any]]:
    """A row per turn and arm; the first round of each, which starts workers, is left out."""
    for turn in range(-1, turns):
        for arm in arms:
            groups = work[arm.judge]
            began = time.perf_counter()
            graded = arm.pool(groups)
            elapsed = time.perf_counter() - began
            idle = arm.idle(elapsed) if arm.idle else None
            if turn < 0:
                continue
            row = {
                "judge": arm.judge,
                "actors": arm.actors,
                "slots": arm.slots,
                "turn": turn,
                "responses": len(groups),
                "right": sum(bool(verdict.correct) for group in graded for verdict in group.verdicts),
                "seconds": elapsed,
                "responses_per_s": len(groups) / elapsed,
            }
            if idle is not None:
                row["idle_share"] = idle
            if arm.judge == "waiting":
                row["of_ideal"] = len(groups) * WAIT_S / arm.slots / elapsed
            yield row


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians per judge and arm."""
    found: dict[str, Any] = {}
    for judge in dict.fromkeys(row["judge"] for row in rows):
        found[judge] = {}
        for actors in dict.fromkeys(row["actors"] for row in rows):
            mine = [row for row in rows if (row["judge"], row["actors"]) == (judge, actors)]
            keys = [key for key in ("responses_per_s", "idle_share", "of_ideal") if key in mine[0]]
            name = f"{actors} actor{'s' * (actors > 1)}" if actors else "local"
            found[judge][name] = {key: round(statistics.median(row[key] for row in mine), 3) for key in keys}
    return found


if __name__ == "__main__":
    main()
