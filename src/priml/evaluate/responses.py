"""The responses of an evaluation on the disk, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq

from priml.files import write_whole
from priml.graders.base import GroupVerifier
from priml.rollout.base import NumberedSampler, SamplingSpec, is_lost
from priml.runs.schemas import RESPONSES
from priml.training.records import rollout_rows, write_rollouts
from priml.types import Group, Prompt, Segment, Trajectory, Verdict

Known = dict[tuple[str, str, int], Trajectory]
"""By decoding, problem and number of the sample."""
StepEnds = Callable[[Sequence[int]], list[int]]

_GROUPING = ("level", "subject", "difficulty")
_READ = (
    "decoding",
    "problem_id",
    "sample",
    "response",
    "response_ids",
    "segments",
    "sampler_logprobs",
    "turn_rewards",
    "finish_reason",
    "outcome",
    "verdict",
    "reason",
    "answer",
)


class ResponseStore:
    """The responses to one set of problems: each on the disk as soon as it is there, in the end all in one file."""

    def __init__(self, whole: Path, unfinished: Path) -> None:
        """`whole`: the parquet file; `unfinished`: lines of JSON until then."""
        self._whole = whole
        self._unfinished = unfinished
        self._file: IO[str] | None = None

    def read(self, *, verdicts: bool = True, lost: bool = False) -> Known:
        """What is there. Without `verdicts`, and where a verdict is undecided, it is to be graded again. With `lost`
        the responses that never came are among them, undecided."""
        rows = pq.read_table(self._whole, columns=list(_READ)).to_pylist() if self._whole.is_file() else []
        found = {
            (row["decoding"], row["problem_id"], row["sample"]): _trajectory(row, verdicts=verdicts)
            for row in [*rows, *self._lines()]
        }
        return {key: one for key, one in found.items() if lost or not is_lost(one.verdict)}

    def add(self, decoding: str, prompt: Prompt, trajectory: Trajectory) -> None:
        """Append one response. It survives the death of this process."""
        self._file = self._file or self._unfinished.open("a", encoding="utf-8")
        self._file.write(json.dumps(_record(decoding, prompt, trajectory)) + "\n")
        self._file.flush()

    def write(self, graded: Mapping[str, Sequence[Group]], step_ends: StepEnds) -> None:
        """Write all verified responses as one parquet file, in place of what was there."""
        rows: list[dict[str, Any]] = []
        for decoding, groups in graded.items():
            for group in groups:
                more = {"decoding": decoding} | {name: _label(group, name) for name in _GROUPING}
                for row in rollout_rows(0, [(group, None)], step_ends):
                    rows.append(row | more | {"sampler_logprobs": _known(row["sampler_logprobs"])})
        write_rollouts(rows, self._whole, RESPONSES)
        if self._file is not None:
            self._file.close()
            self._file = None
        self._unfinished.unlink(missing_ok=True)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The records of an interrupted run, without the line that its end has cut."""
        if not self._unfinished.is_file():
            return
        text = self._unfinished.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_whole(self._unfinished, whole)
        yield from map(json.loads, whole.splitlines())


def complete(
    sampler: NumberedSampler | None,
    verify: GroupVerifier,
    prompts: Sequence[Prompt],
    specs: Mapping[str, SamplingSpec],
    store: ResponseStore,
    *,
    verdicts: bool = True,
) -> dict[str, list[Group]]:
    """Sample what the store does not have yet, verify, and return all groups of each decoding.

    Without a sampler nothing is sampled. `verdicts=False` grades every response again.
    """
    known = store.read(verdicts=verdicts, lost=sampler is None)
    graded: dict[str, list[Group]] = {}
    for decoding, spec in specs.items():

        def finished(prompt: Prompt, trajectory: Trajectory, decoding: str = decoding) -> None:
            if not is_lost(trajectory.verdict):  # whoever goes on asks for it again
                store.add(decoding, prompt, trajectory)
            known[decoding, prompt.problem.id, trajectory.sample] = trajectory
            verify.submit(prompt, trajectory)

        wanted = missing(known, decoding, spec, prompts)
        if sampler is not None and wanted:
            sampler.sample([prompt for prompt, _ in wanted], spec, finished, [numbers for _, numbers in wanted])
        graded[decoding] = verify([_group(known, decoding, spec, prompt) for prompt in prompts])
    return graded


def missing(known: Known, decoding: str, spec: SamplingSpec, prompts: Sequence[Prompt]) -> list[tuple[Prompt, range]]:
    """The samples that are still to be drawn: each prompt with numbers that follow each other, maybe several times."""
    found: list[tuple[Prompt, range]] = []
    for prompt in prompts:
        numbers = [i for i in range(spec.group_size) if (decoding, prompt.problem.id, i) not in known]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
            members = [number for _, number in run]
            found.append((prompt, range(members[0], members[-1] + 1)))
    return found


def _group(known: Known, decoding: str, spec: SamplingSpec, prompt: Prompt) -> Group:
    keys = [(decoding, prompt.problem.id, i) for i in range(spec.group_size)]
    return Group(prompt, tuple(known[key] for key in keys if key in known))


def _record(decoding: str, prompt: Prompt, trajectory: Trajectory) -> dict[str, Any]:
    """What `_trajectory` reads."""
    verdict, logprobs = trajectory.verdict, _known(trajectory.logprobs)
    return {
        "decoding": decoding,
        "problem_id": prompt.problem.id,
        "sample": trajectory.sample,
        "response": trajectory.text,
        "response_ids": trajectory.token_ids.tolist(),
        "segments": [{"num_tokens": len(s.token_ids), "weight_version": s.weight_version} for s in trajectory.segments],
        "sampler_logprobs": None if logprobs is None else logprobs.tolist(),
        "turn_rewards": trajectory.turn_rewards,
        "finish_reason": trajectory.finish_reason,
        "outcome": verdict and verdict.score,
        "verdict": verdict and verdict.label,
        "reason": verdict and verdict.reason,
        "answer": verdict and verdict.answer,
    }


def _trajectory(row: Mapping[str, Any], *, verdicts: bool) -> Trajectory:
    ids, logprobs = np.array(row["response_ids"], np.int32), row["sampler_logprobs"]
    segments: list[Segment] = []
    begin = spoken = 0
    for part in row["segments"]:
        end, is_trained = begin + part["num_tokens"], part["weight_version"] is not None
        size = part["num_tokens"] if is_trained else 0
        known = np.full(size, np.nan) if logprobs is None else np.array(logprobs[spoken : spoken + size])
        segments.append(Segment(ids[begin:end], known.astype(np.float32), part["weight_version"]))
        begin, spoken = end, spoken + size
    rewards, label = row["turn_rewards"], row["verdict"]
    trajectory = Trajectory(
        tuple(segments),
        row["response"],
        row["finish_reason"],
        row["sample"],
        turn_rewards=None if rewards is None else tuple(rewards),
    )
    if label == "undecided" and is_lost(undecided := Verdict.undecided(row["reason"])):
        return replace(trajectory, verdict=undecided)
    if not verdicts or label not in ("correct", "wrong"):
        return trajectory
    return replace(trajectory, verdict=Verdict(label == "correct", row["outcome"], row["reason"], row["answer"]))


def _known(logprobs: np.ndarray) -> np.ndarray | None:
    """Servers do not say them all: they stand as NaN in memory and as nothing in a file."""
    return None if np.isnan(logprobs).any() else logprobs


def _label(group: Group, name: str) -> str | None:
    value = group.prompt.problem.meta.get(name)
    return None if value is None else str(value)
