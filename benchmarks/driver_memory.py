"""How many bytes does the driver need per response token, and which process needs the others?

It runs two steps of the real training loop with the real records of a run. The models are artificial: the sampler
returns 8 bytes per token and 4 of text, and log-probs are random. So the numbers are what a step needs besides models,
with all that is kept from the step before. They are measured in one process (`local`) and on Ray, separately for the
driver and the first rank. What is in the object store belongs to no process.

Each size has its own processes. Their private memory is read every few milliseconds, and the maximum counts. Bytes per
token are the slope over the sizes. The slope leaves out imports and a row group of the rollout file, which are the same
for every size. (With `--quick` the row group is not, so its slope is too steep.) All responses have full length, and
every 32nd token ends a step. Seconds are those of the process itself (`process_time`), without the artificial models.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import arguments, write_results
from priml.batch import Batch, TokenScores
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.distributed.ray.cluster import Cluster, ClusterTopology
from priml.distributed.ray.ranks import RankGroup, RankRoles
from priml.distributed.ray.roles import RankRecords, RemoteAdvantages, RemotePolicy, RemotePrm, RemoteRecords
from priml.distributed.ray.samplers import SamplerActor, SamplerPool, SamplerWorker
from priml.factories.algorithm import build_advantages, build_collect_spec
from priml.graders.base import GroupVerifier
from priml.graders.pool import VerifierPool
from priml.learners.base import ProcessRewards
from priml.rollout.base import Sampler, SamplingSpec
from priml.runs.folder import RunFolder
from priml.training.collectors import SyncCollector
from priml.training.interrupt import Interruption
from priml.training.loop import Roles, train
from priml.training.online_run import Monitors, OnlineRun
from priml.training.records import LocalRecords, Records, annotate
from priml.training.run import Schedule
from priml.training.timing import Clock
from priml.types import Group, Problem, Prompt, Segment, Trajectory, Verdict

GROUP = 16
PROMPT_TOKENS = 64
PROCESSES = ("local", "driver", "first rank")
AIM = 16_384 * 32_768
"""Response tokens of the large step in `docs/cluster.md`."""


def main() -> None:
    """Measure, and write the JSON."""
    options = arguments(__doc__).parse_args()
    sizes, repeats = ([(64, 1024), (128, 1024)], 1) if options.quick else ([(n, 16_384) for n in (512, 768, 1024)], 2)
    with get_context("fork").Pool(1, maxtasksperchild=1) as child:
        rows = [
            {"process": process, "responses": responses, "length": length, "repeat": repeat} | found
            for repeat in range(repeats)
            for measure in (in_one_process, on_ray)
            for responses, length in sizes
            for process, found in child.apply(measure, (responses, length)).items()
        ]
    write_results(options.out, "driver_memory", rows=rows, headline=headline(rows))


def in_one_process(responses: int, length: int) -> dict[str, dict[str, float]]:
    """The whole of it."""
    made_up, records = MadeUp(length), LocalRecords(ends)
    watch = Watch()
    advantages = build_advantages(settings(responses, length))
    two_steps(made_up, made_up, (made_up, made_up, advantages), records, responses, length)
    return {"local": watch.seen(made_up.seconds)}


def on_ray(responses: int, length: int) -> dict[str, dict[str, float]]:
    """Driver, sampler and one rank in processes of their own; the verifier, who reads every text, is the driver's."""
    topology = ClusterTopology(ranks=1, samplers=1, verifiers=1, colocate=False, sampler_devices=1, spread=False)
    cluster = Cluster(topology, address=None, device="cpu")
    ranks = RankGroup(cluster, 1, partial(make_rank_roles, length), timeout_s=600)
    ranks.wait()
    make_sampler = partial(make_sampler_worker, length)
    sampler = SamplerPool(
        lambda index: cluster.sampler(index, SamplerActor, make_sampler, os.getcwd(), devices=[]),
        1,
        max_rows=256,
    )
    sampler.wait()
    records: Any = RemoteRecords(ranks)
    watch = Watch()
    stand_ins: Any = RemotePolicy(ranks, "policy"), RemotePrm(ranks, "prm"), RemoteAdvantages(ranks)
    two_steps(sampler, VerifierPool(HalfRight()), stand_ins, records, responses, length)
    seen = {
        "driver": watch.seen(0.0),
        "first rank": ranks.call_rank0("watch", "seen", ranks.call_rank0("prm", "spent")),
    }
    cluster.close()
    return seen


def make_rank_roles(length: int, rank: int, ranks: int, address: str, report: Callable[[str], None]) -> RankRoles:
    """What the rank has instead of models."""
    made_up = MadeUp(length)
    records = RankRecords(LocalRecords(ends))
    advantages = build_advantages(settings(1, length))
    roles = {"policy": made_up, "prm": made_up, "records": records, "advantages": advantages, "watch": Watch()}
    return RankRoles(roles, {}, {"precision": "fp32"})


def make_sampler_worker(length: int) -> SamplerWorker:
    """What the sampler actor has instead of an engine."""
    return SamplerWorker(MadeUp(length), lambda weights, version: None, partial(annotate, step_ends=ends))


def settings(responses: int, length: int) -> TrainConfig:
    """Two steps of so many responses."""
    tree = {
        "run_dir": "unused",
        "steps": 2,
        "policy": {"model": "unused"},
        "data": {"train": {"kind": "chain"}},
        "sampling": {"group_size": GROUP, "max_new_tokens": length},
        "batch": {"prompts": max(1, responses // GROUP)},
    }
    return parse_config(TrainConfig, tree, where="benchmark")


def two_steps(
    sampler: Sampler, verify: GroupVerifier, learners: tuple[Any, ...], records: Records, responses: int, length: int
) -> None:
    """The loop. `learners`: policy, PRM and advantages."""
    prompts = [
        Prompt(Problem(str(i), "?", "1"), "?", tuple(range(PROMPT_TOKENS))) for i in range(2 * responses // GROUP)
    ]
    spec = build_collect_spec(settings(responses, length))
    collector = SyncCollector(sampler, verify, ProblemStream(prompts, seed=0), spec)
    roles = Roles(collector, records.collate, *learners)
    with tempfile.TemporaryDirectory() as folder:
        run = OnlineRun(
            RunFolder(Path(folder)),
            roles={"policy": roles.policy, "prm": roles.prm},
            stream=collector,
            schedule=Schedule(steps=0),
            monitors=Monitors(records, Clock()),
            trackers=[],
            interruption=Interruption("."),
        )
        train(roles, Twice(run))


class Watch:
    """Looks at the private memory of its process from the time when it is made."""

    def __init__(self) -> None:
        self._peak = 0
        self._began = time.process_time()
        threading.Thread(target=self._look, daemon=True).start()

    def seen(self, spent: float) -> dict[str, float]:
        """The most there was, and seconds of processor time a step, without those spent making numbers up."""
        return {
            "peak_bytes": self._peak,
            "seconds_a_step": (time.process_time() - self._began - spent) / 2,
        }

    def _look(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self._peak = max(self._peak, 1024 * int(status.partition("RssAnon:")[2].split()[0]))
            time.sleep(0.005)


class HalfRight:
    """A `Verifier` that reads every text."""

    def __init__(self) -> None:
        self._asked = itertools.count()

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Every other one asked about is right."""
        return (Verdict.right, Verdict.wrong)[(next(self._asked) + len(response)) % 2]("made up")


def ends(ids: Sequence[int]) -> list[int]:
    """As if every 32nd token were a line break."""
    return [*range(31, len(ids) - 1, 32), len(ids) - 1]


class Twice:
    """A `Run` of two steps, whose schedule has nothing to save."""

    def process_factor(self, report: Any) -> float:
        return 1.0

    def __init__(self, run: OnlineRun) -> None:
        self.record = run.record

    def steps(self) -> Iterator[int]:
        """Two of them."""
        return iter((1, 2))


class MadeUp:
    """Every role, each with numbers out of the air; `seconds` is the time that this took."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._rng = np.random.default_rng(0)
        self.seconds = 0.0

    def sample(
        self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Any = None, numbers: Any = None
    ) -> list[Group]:
        """Responses of full length."""
        began = time.process_time()
        groups = [Group(p, tuple(self._trajectory(i) for i in range(spec.group_size))) for p in prompts]
        self.seconds += time.process_time() - began
        return groups

    def submit(self, prompt: Prompt, trajectory: Trajectory) -> None:
        """Nothing to judge."""

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """Half of each group is right."""
        verdicts = tuple((Verdict.right, Verdict.wrong)[i % 2]("made up") for i in range(GROUP))
        return [Group(group.prompt, group.trajectories, verdicts) for group in groups]

    def score(self, batch: Batch) -> Batch:
        """Scores of an old policy."""
        return batch.with_old(TokenScores(self._numbers(batch), self._numbers(batch)))

    def update(self, batch: Batch, *targets: Any) -> Any:
        """Nothing learnt. A policy, which is given targets, returns the batch."""
        return (batch, None) if targets else None

    def rewards(self, batch: Batch) -> ProcessRewards:
        """What a PRM would pay, and its log-probs."""
        rewards_BT, prm_BT, ref_BT = (self._numbers(batch) for _ in range(3))
        return ProcessRewards(rewards_BT, prm_BT, ref_BT, 0.05, torch.zeros(len(batch), dtype=torch.int32))

    def spent(self) -> float:
        """Seconds that making numbers up has taken."""
        return self.seconds

    def digest(self) -> str:
        """There are no weights."""
        return ""

    def weights(self) -> Any:
        """None to speak of."""
        return torch.nn.Linear(1, 1)

    def load(self, weights: Any, version: int) -> None:
        """Nothing to load."""

    def _trajectory(self, sample: int) -> Trajectory:
        ids = self._rng.integers(0, 150_000, self._length, dtype=np.int32)
        logprobs = -self._rng.random(self._length, dtype=np.float32)
        return Trajectory((Segment(ids, logprobs, 0),), "word" * self._length, "stop", sample)

    def _numbers(self, batch: Batch) -> torch.Tensor:
        began = time.process_time()
        numbers_BT = torch.rand(len(batch), self._length)
        self.seconds += time.process_time() - began
        return numbers_BT


def headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each process the slope over the sizes, and what it makes of the large step."""
    return {process: _slope([row for row in rows if row["process"] == process]) for process in PROCESSES}


def _slope(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tokens = [row["responses"] * row["length"] for row in rows]
    slope, fixed = statistics.linear_regression(tokens, [row["peak_bytes"] for row in rows])
    seconds, _ = statistics.linear_regression(tokens, [row["seconds_a_step"] for row in rows])
    return {
        "bytes_a_token": round(slope, 1),
        "fixed_mib": round(fixed / 2**20),
        "microseconds_a_token": round(1e6 * seconds, 3),
        "gb_of_16384_x_32768": round(slope * AIM / 1e9, 1),
        "minutes_of_16384_x_32768": round(seconds * AIM / 60, 1),
    }


if __name__ == "__main__":
    main()
