"""Collecting a step's batch: which groups are kept, how many prompts to draw, what goes back (paper section 3.3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from priml.batch import Batch, Row, collate
from priml.errors import RunError
from priml.rollout.base import SamplingSpec
from priml.types import Group, Prompt, Segment, Trajectory

FilterStatus = Literal["kept", "too_easy", "too_hard", "truncated", "undecided", "surplus"]


class StarvedError(RunError):
    """The rounds of a step are used up and too few prompts passed the filter. No model has moved in this step."""

    def __init__(self, message: str, groups: Sequence[tuple[Group, FilterStatus]]) -> None:
        """`groups`: all that was sampled, with what the filter made of it."""
        super().__init__(message)
        self.groups = groups


_REASONS = 5
"""Reasons that a message names."""


@dataclass(frozen=True, slots=True)
class FilterBand:
    """Mean outcomes worth learning from, both ends inclusive."""

    low: float
    high: float
    drop_truncated: bool = False

    def filter_status(self, group: Group) -> FilterStatus:
        """Whether a decided group is kept, or why not. The comparison allows for rounding in the mean."""
        if self.drop_truncated and any(c.finish_reason == "length" for c in group.trajectories):
            return "truncated"
        if group.mean_outcome < self.low - 1e-9:
            return "too_hard"
        if group.mean_outcome > self.high + 1e-9:
            return "too_easy"
        return "kept"


@dataclass
class GroupPool:
    """The groups of one step. It is filled up to the batch size."""

    wanted: int
    band: FilterBand | None
    """None keeps every decided group."""
    max_rounds: int
    first_draw: int | None = None
    """Prompts that are sampled first; None: `wanted`."""
    groups: list[tuple[Group, FilterStatus]] = field(default_factory=list[tuple[Group, FilterStatus]], init=False)
    """Every group of the step with its status, in the order of sampling."""
    _rounds: int = field(default=0, init=False)
    _kept: int = field(default=0, init=False)

    @property
    def is_full(self) -> bool:
        return self._kept >= self.wanted

    @property
    def next_draw(self) -> int:
        """Number of prompts to sample now: `first_draw`, then what the pass rate so far asks for.

        Raises:
            StarvedError: the rounds are used up; the message says what was dropped and why.
        """
        first_draw = self.first_draw or self.wanted
        if self._rounds == 0:
            return first_draw
        if self._rounds >= self.max_rounds:
            raise StarvedError(self._starved(), self.groups)
        missing = self.wanted - self._kept
        pass_rate = max(self._kept, 1) / len(self.groups)
        return min(math.ceil(missing / pass_rate), 2 * first_draw)

    def add(self, groups: Sequence[Group]) -> None:
        """Filter one round of verified groups."""
        self._rounds += 1
        for group in groups:
            filter_status: FilterStatus = "undecided"
            if group.is_decided:
                filter_status = "kept" if self.band is None else self.band.filter_status(group)
            if filter_status == "kept":
                filter_status = "surplus" if self.is_full else "kept"
                self._kept += filter_status == "kept"
            self.groups.append((group, filter_status))

    @property
    def kept(self) -> list[Group]:
        """The groups of the batch."""
        return [group for group, filter_status in self.groups if filter_status == "kept"]

    @property
    def surplus(self) -> list[Prompt]:
        """Prompts to sample again in the next step, with the newer policy. Their responses are not kept."""
        return [group.prompt for group, filter_status in self.groups if filter_status == "surplus"]

    @property
    def counts(self) -> Counter[FilterStatus]:
        """Prompts per filter status."""
        return Counter(filter_status for _, filter_status in self.groups)

    def _starved(self) -> str:
        statuses = self.counts
        counts = ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in statuses.most_common() if s != "kept")
        match max(("undecided", "truncated", "too_easy", "too_hard"), key=lambda status: statuses[status]):
            case "undecided":
                lost = [v for group, status in self.groups if status == "undecided" for v in group.verdicts]
                commonest_failure = Counter(v.reason for v in lost if v.correct is None).most_common(1)[0][0]
                advice = f"the verifier could not decide ({commonest_failure}): mend it, then start again"
            case "truncated":
                advice = "responses run into sampling.max_new_tokens: raise it, or set overlong.kind: keep"
            case "too_easy":
                advice = "the policy solves nearly everything: use harder problems, or stop here"
            case _:
                advice = (
                    "the policy solves next to nothing, or the verifier is wrong: look at the responses; then use "
                    "easier problems, more warm start, or larger groups"
                )
        return (
            f"starved: {self._kept} of {self.wanted} prompts passed the filter after {self._rounds} rounds "
            f"({counts}); verdicts: {self._reasons()}; {advice}. Or widen filter.low/high, lower batch.prompts, raise "
            "filter.max_rounds"
        )

    def _reasons(self) -> str:
        """The commonest verdicts with their reasons, and how often each was given."""
        verdicts = [verdict for group, _ in self.groups for verdict in group.verdicts]
        counted = Counter(f"{v.label} ({v.reason})" if v.reason else v.label for v in verdicts)
        others = len(verdicts) - sum(n for _, n in counted.most_common(_REASONS))
        shown = [f"{n} {reason}" for reason, n in counted.most_common(_REASONS)]
        return ", ".join(shown + ([f"{others} others"] if others else []))


@dataclass(frozen=True, slots=True)
class CollectSpec:
    """How the batch of a step is sampled and filtered."""

    sampling: SamplingSpec
    """That of any step."""
    prompts: int
    """Prompts of a batch."""
    first_draw: int | None
    """Prompts that are sampled first; None: as many as the batch has."""
    band: FilterBand
    max_rounds: int

    def new_pool(self) -> GroupPool:
        return GroupPool(wanted=self.prompts, band=self.band, first_draw=self.first_draw, max_rounds=self.max_rounds)

    def sampling_at(self, step: int) -> SamplingSpec:
        return replace(self.sampling, step=step)


def find_step_ends(trajectory: Trajectory, find: Callable[[Sequence[int]], list[int]]) -> NDArray[np.int32]:
    """Indices of the trained tokens that end a step; a turn always does. `find` decodes every token, which is slow."""
    if trajectory.step_ends is not None:
        return trajectory.step_ends
    turns = trajectory.turns
    starts = np.cumsum([0, *map(len, turns[:-1])])
    ends = [np.array(find(turn.tolist()), dtype=np.int32) + start for turn, start in zip(turns, starts, strict=True)]
    return np.concatenate(ends, dtype=np.int32)


def collate_groups(groups: Sequence[Group], step: int, *, step_ends: Callable[[Sequence[int]], list[int]]) -> Batch:
    """Decided groups as one batch; the group ids are their positions."""
    rows: list[Row] = []
    pays = any(trajectory.turn_rewards for group in groups for trajectory in group.trajectories)
    for index, group in enumerate(groups):
        for trajectory, verdict in zip(group.trajectories, group.verdicts, strict=True):
            assert verdict.score is not None, "undecided groups never reach a batch"
            trained = [segment for segment in trajectory.segments if segment.is_trained]
            rows.append(
                Row(
                    prompt_ids=group.prompt.token_ids,
                    response_ids=trajectory.token_ids,
                    outcome=verdict.score,
                    group=index,
                    step_ends=find_step_ends(trajectory, step_ends),
                    truncated=trajectory.finish_reason == "length",
                    sampler_logprobs=trajectory.logprobs,
                    is_trained=trained_mask(trajectory.segments),
                    weight_versions=_per_segment(trained, [s.weight_version for s in trained], np.int32),
                    turn_rewards=_turn_rewards(trajectory) if pays else None,
                )
            )
    return collate(rows, step=step)


def trained_mask(segments: Sequence[Segment]) -> NDArray[np.bool_]:
    """Which of all their tokens the policy sampled."""
    return _per_segment(segments, [segment.is_trained for segment in segments], np.bool_)


def _turn_rewards(trajectory: Trajectory) -> NDArray[np.float32]:
    """Each reward at the last token of its turn."""
    ends = np.cumsum([len(turn) for turn in trajectory.turns])
    rewards_T = np.zeros(ends[-1], np.float32)
    if trajectory.turn_rewards is not None:
        rewards_T[ends - 1] = trajectory.turn_rewards
    return rewards_T


def _per_segment(segments: Sequence[Segment], values: Sequence[int | None], dtype: type[np.generic]) -> NDArray[Any]:
    """The value of each segment for each of its tokens."""
    return np.repeat(np.array(values, dtype=dtype), [len(segment.token_ids) for segment in segments])
