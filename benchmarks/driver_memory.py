"""How many bytes does the driver need per response token, at its peak?

The training loop and the records of a run as they are, two steps of them, around roles that make up numbers: what the
sampler says is 8 bytes a token and 4 of text, what the models would answer is random. So the peak is that of a driver
whose models are elsewhere, with all that it keeps from the step before. Each size has a process of its own, whose
largest resident size counts; the bytes per token are the slope over the sizes, which leaves out what imports take and
what a row group of the rollout file takes, the same for every size (with `--quick` it is not, so its slope is too
steep). Responses are all of full length, and every 32nd token ends a step.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from common import arguments, write_results
from priml.batch import Batch, TokenScores
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.roles.base import ProcessRewards
from priml.rollout.base import SamplingSpec
from priml.telemetry.timing import Clock
from priml.train.interrupt import Interruption
from priml.train.loop import Roles, train
from priml.train.records import LocalRecords
from priml.train.run import Run, Schedule
from priml.types import Completion, Group, Problem, Prompt, Verdict

GROUP = 16
PROMPT_TOKENS = 64
AIM = 16_384 * 32_768
"""Response tokens of the large step in `docs/cluster.md`."""


def main() -> None:
    """Measure, and write the JSON."""
    options = arguments(__doc__).parse_args()
    sizes, repeats = ([(64, 1024), (128, 1024)], 1) if options.quick else ([(n, 16_384) for n in (512, 768, 1024)], 2)
    with get_context("fork").Pool(1, maxtasksperchild=1) as child:
        rows = [
            {"responses": responses, "length": length, "repeat": repeat} | child.apply(step, (responses, length))
            for repeat in range(repeats)
            for responses, length in sizes
        ]
    write_results(options.out, "driver_memory", rows=rows, headline=headline(rows))


def step(responses: int, length: int) -> dict[str, Any]:
    """Two steps of this size; the peak of this process, and the seconds of a step, without those of the roles."""
    tree = {
        "run_dir": "unused",
        "steps": 2,
        "policy": {"model": "unused"},
        "data": {"train": {"kind": "chain"}},
        "sampling": {"group_size": GROUP, "max_new_tokens": length},
        "batch": {"prompts": responses // GROUP},
    }
    made_up = MadeUp(length)
    clock, records = Clock(), LocalRecords(ends)
    prompts = [
        Prompt(Problem(str(i), "?", "1"), "?", tuple(range(PROMPT_TOKENS))) for i in range(2 * responses // GROUP)
    ]
    stream = ProblemStream(prompts, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rollouts").mkdir()
        run = Run(
            Path(folder),
            policy=made_up,
            prm=made_up,
            stream=stream,
            evaluate=None,
            schedule=Schedule(steps=0, evaluate_every=None, checkpoint_every=None, keep_checkpoints=1),
            clock=clock,
            trackers=[],
            records=records,
            interruption=Interruption("."),
        )
        roles = Roles(made_up, made_up, records.collate, made_up, made_up)
        began = time.perf_counter()
        train(roles, stream, parse_config(TrainConfig, tree, where="benchmark"), Twice(run))
        seconds = time.perf_counter() - began - made_up.seconds
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds_a_step": seconds / 2}


def ends(ids: Sequence[int]) -> list[int]:
    """As if every 32nd token were a line break."""
    return [*range(31, len(ids) - 1, 32), len(ids) - 1]


class Twice:
    """A `Run` of two steps, whose schedule has nothing to save."""

    process_factor = 1.0

    def __init__(self, run: Run) -> None:
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

    def sample(self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Any = None) -> list[Group]:
        """Responses of full length."""
        began = time.perf_counter()
        groups = [Group(p, tuple(self._completion(i) for i in range(spec.group_size))) for p in prompts]
        self.seconds += time.perf_counter() - began
        return groups

    def begin(self, prompt: Prompt, completion: Completion) -> None:
        """Nothing to judge."""

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """Half of each group is right."""
        verdicts = tuple((Verdict.right, Verdict.wrong)[i % 2]("made up") for i in range(GROUP))
        return [Group(group.prompt, group.completions, verdicts) for group in groups]

    def recall(self, batch: Batch) -> Batch:
        """Scores of an old policy."""
        return batch.with_old(TokenScores(self._numbers(batch), self._numbers(batch)))

    def update(self, *given: Any) -> None:
        """Nothing learnt."""

    def rewards(self, batch: Batch) -> ProcessRewards:
        """What a PRM would pay, and its log-probs."""
        rewards_BT, prm_BT, ref_BT = (self._numbers(batch) for _ in range(3))
        return ProcessRewards(rewards_BT, prm_BT, ref_BT, 0.05, torch.zeros(len(batch), dtype=torch.int32))

    def weights(self) -> Any:
        """None to speak of."""
        return SimpleNamespace(module=lambda: None)

    def load(self, weights: Any, version: int) -> None:
        """Nothing to load."""

    def _completion(self, sample: int) -> Completion:
        ids = self._rng.integers(0, 150_000, self._length, dtype=np.int32)
        logprobs = -self._rng.random(self._length, dtype=np.float32)
        return Completion(ids, "word" * self._length, "stop", logprobs, sample, 0)

    def _numbers(self, batch: Batch) -> torch.Tensor:
        began = time.perf_counter()
        numbers_BT = torch.rand(len(batch), self._length)
        self.seconds += time.perf_counter() - began
        return numbers_BT


def headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The slope over the sizes, and what it makes of the large step."""
    tokens = [row["responses"] * row["length"] for row in rows]
    slope, fixed = statistics.linear_regression(tokens, [row["peak_bytes"] for row in rows])
    return {
        "bytes_a_token": round(slope, 1),
        "fixed_mib": round(fixed / 2**20),
        "gb_of_16384_x_32768": round(slope * AIM / 1e9, 1),
        "microseconds_a_token": round(
            1e6 * statistics.median(row["seconds_a_step"] / count for row, count in zip(rows, tokens, strict=True)), 3
        ),
    }


if __name__ == "__main__":
    main()
