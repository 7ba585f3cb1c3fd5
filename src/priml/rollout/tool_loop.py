"""Rollouts of several turns: the policy speaks, an environment answers, and the policy reads on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from priml.rollout.base import Finished, PoolableSampler, SamplingSpec
from priml.rollout.environment import Environment, EnvironmentCaller, EnvironmentFailed
from priml.rollout.observations import ObservationFormat
from priml.rollout.trajectories import SampleNumbers, build_groups
from priml.types import FinishReason, Group, Prompt, Segment, Tokenizer, Trajectory, Verdict

logger = logging.getLogger(__name__)

_THREADS = 16
"""Environments that are called at once."""


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Where a rollout ends at the latest. `sampling.max_new_tokens` bounds the trained tokens of all turns."""

    turns: int
    tokens: int | None = None
    """Of one turn; None: as many as are left."""
    context: int | None = None
    """What the model can read, prompt and observations included; None: any number."""

    def left(self, prompt: Prompt, tokens: int) -> int:
        """How many of so many tokens the policy may sample behind a prompt."""
        return tokens if self.context is None else max(1, min(tokens, self.context - len(prompt.token_ids)))


@dataclass(slots=True)
class _Rollout:
    prompt: Prompt
    group: int
    """Index of the prompt."""
    sample: int
    left: int
    """Tokens that the policy may still sample."""
    environment: Environment | None = None
    """None until its first turn has been sampled."""
    segments: list[Segment] = field(default_factory=list[Segment])
    text: str = ""
    """Of the last turn."""
    finish_reason: FinishReason = "length"
    rewards: list[float] = field(default_factory=list[float])
    is_done: bool = False
    verdict: Verdict | None = None

    def context(self, turn: int) -> Prompt:
        """All tokens so far, as a prompt. The turn is part of the id, so that each draws other random numbers."""
        tokens = (token for segment in self.segments for token in segment.token_ids.tolist())
        problem = replace(self.prompt.problem, id=f"{self.prompt.problem.id}#{turn}")
        return Prompt(problem, "", (*self.prompt.token_ids, *tokens))

    def add_turn(self, turn: Trajectory, tokenizer: Tokenizer) -> None:
        """Append what the policy sampled, as far as it may."""
        (segment,) = turn.segments
        is_cut = len(segment.token_ids) > self.left
        if is_cut:
            cut = slice(self.left)
            segment = Segment(segment.token_ids[cut], segment.logprobs[cut], segment.weight_version)
        self.segments.append(segment)
        self.left -= len(segment.token_ids)
        self.text = tokenizer.decode(segment.token_ids, skip_special_tokens=True) if is_cut else turn.text
        if is_cut or turn.finish_reason == "length":
            self.finish_reason, self.is_done = "length", True

    def trajectory(self) -> Trajectory:
        unpaid = len(self.rewards) < sum(segment.is_trained for segment in self.segments)  # cut at the limit of tokens
        rewards = (*self.rewards, *([0.0] if unpaid else [])) if any(self.rewards) else None
        return Trajectory(
            tuple(self.segments),
            self.text,
            self.finish_reason,
            self.sample,
            turn_rewards=rewards,
            verdict=self.verdict,
        )


class ToolLoop:
    """A `Sampler` of rollouts with turns, over a sampler of single responses. All rollouts take their turns together.

    The first turn is drawn as without an environment, to the bit.
    """

    def __init__(
        self,
        sampler: PoolableSampler,
        tokenizer: Tokenizer,
        form: ObservationFormat,
        make: Callable[[], Environment],
        caller: EnvironmentCaller,
        limits: TurnLimits,
    ) -> None:
        """`make` makes the environment of a rollout; `caller` calls it."""
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._form = form
        self._make = make
        self._caller = caller
        self._limits = limits
        self._numbers = SampleNumbers()

    def load(self, weights: Any, version: int) -> None:
        self._sampler.load(weights, version)

    def sample(
        self,
        prompts: Sequence[Prompt],
        spec: SamplingSpec,
        finished: Finished | None = None,
        numbers: Sequence[range] | None = None,
    ) -> list[Group]:
        """One group per prompt, in the order of the prompts. `finished` is called when a rollout has had its last turn.

        A rollout whose environment fails is cut there and undecided: nothing of it is graded or trained on.
        """
        numbers = self._numbers.take(prompts, spec) if numbers is None else numbers
        rollouts = [
            _Rollout(prompt, group, sample, self._limits.left(prompt, spec.max_new_tokens))
            for group, (prompt, samples) in enumerate(zip(prompts, numbers, strict=True))
            for sample in samples
        ]
        groups: list[list[Trajectory]] = [[] for _ in prompts]
        live = rollouts
        try:
            for turn in range(self._limits.turns):
                self._speak(live, turn, prompts, numbers, spec)
                self._answer([rollout for rollout in live if not rollout.is_done], turn)
                for rollout in live:
                    if rollout.is_done:
                        groups[rollout.group].append(trajectory := rollout.trajectory())
                        if finished is not None:
                            finished(rollout.prompt, trajectory)
                live = [rollout for rollout in live if not rollout.is_done]
                if not live:
                    break
        finally:
            self._close(rollouts)
        return build_groups(prompts, groups)

    def _speak(
        self,
        live: Sequence[_Rollout],
        turn: int,
        prompts: Sequence[Prompt],
        numbers: Sequence[range],
        spec: SamplingSpec,
    ) -> None:
        """The next turn of every rollout."""
        most = max(rollout.left for rollout in live)
        spec = replace(spec, max_new_tokens=min(most, self._limits.tokens or most))
        if turn == 0:  # groups share their prompt
            groups = self._sampler.sample(prompts, spec, numbers=numbers)
        else:
            contexts = [rollout.context(turn) for rollout in live]
            one_each = [range(rollout.sample, rollout.sample + 1) for rollout in live]
            groups = self._sampler.sample(contexts, replace(spec, group_size=1), numbers=one_each)
        turns = (trajectory for group in groups for trajectory in group.trajectories)
        for rollout, trajectory in zip(live, turns, strict=True):
            rollout.add_turn(trajectory, self._tokenizer)

    def _answer(self, rollouts: Sequence[_Rollout], turn: int) -> None:
        """What the environments answer to the turns just taken."""
        is_last = turn + 1 == self._limits.turns
        with ThreadPoolExecutor(_THREADS) as threads:  # none waits longer than the limit of a call
            list(threads.map(lambda rollout: self._answer_one(rollout, is_last=is_last), rollouts))

    def _answer_one(self, rollout: _Rollout, *, is_last: bool) -> None:
        try:
            environment = rollout.environment or self._open(rollout)
            observation, reward, done = self._caller.step(environment, rollout.text)
        except EnvironmentFailed as error:
            rollout.verdict, rollout.is_done = Verdict.undecided(str(error)), True
            return
        if isinstance(reward, Verdict):
            rollout.verdict, reward = reward, None
        rollout.rewards.append(reward or 0.0)
        rollout.is_done = done or is_last or rollout.left == 0
        if done:
            rollout.finish_reason = "stop"
        if not rollout.is_done:
            self._observe(rollout, self._form.segment(observation, self._tokenizer))

    def _observe(self, rollout: _Rollout, observation: Segment) -> None:
        """Append an observation, if there is room for a turn behind it."""
        tokens = len(rollout.prompt.token_ids) + len(observation.token_ids)
        tokens += sum(len(segment.token_ids) for segment in rollout.segments)
        if self._limits.context is not None and tokens >= self._limits.context:
            rollout.is_done = True
            return
        if self._limits.context is not None:
            rollout.left = min(rollout.left, self._limits.context - tokens)
        rollout.segments.append(observation)

    def _open(self, rollout: _Rollout) -> Environment:
        environment: Environment = self._caller(self._make)
        rollout.environment = environment  # from here on it is closed, whatever happens
        self._caller(lambda: environment.reset(rollout.prompt.problem))
        return environment

    def _close(self, rollouts: Sequence[_Rollout]) -> None:
        """Close every environment that was opened. One that cannot be closed has already given its answers."""
        opened = [rollout.environment for rollout in rollouts if rollout.environment is not None]

        def close(environment: Environment) -> None:
            try:
                self._caller(lambda: environment.close())
            except EnvironmentFailed as error:
                logger.warning(f"an environment could not be closed: {error}")

        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(close, opened))
