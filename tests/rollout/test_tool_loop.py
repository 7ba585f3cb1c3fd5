"""Rollouts with turns: what the policy reads, what counts as its own, and how they end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from priml.models.forward import LanguageModel
from priml.models.tiny import character_tokenizer
from priml.rollout.base import SamplingSpec
from priml.rollout.environment import EnvironmentCaller, StepResult
from priml.rollout.observations import ObservationFormat
from priml.rollout.tool_loop import ToolLoop, TurnLimits
from priml.rollout.transformers import TransformersSampler
from priml.training.collect import collate_groups
from priml.types import Group, Problem, Prompt, Segment, Trajectory, Verdict

CPU = torch.device("cpu")
TOKENIZER = character_tokenizer()
EOS = TOKENIZER.eos_token_id
FORM = ObservationFormat((), (), limit=100)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def make_prompt(name: str = "p") -> Prompt:
    return Prompt(Problem(name, "", ""), "1+1=", tuple(ids("1+1=")))


def spec(**changes: Any) -> SamplingSpec:
    return SamplingSpec(**{"group_size": 2, "temperature": 1.0, "max_new_tokens": 40, "seed": 0, "step": 1} | changes)


class Script:
    """A sampler that says, to what it has read, what a table has for it; EOS behind it, unless it ends in `~`."""

    def __init__(self, table: Mapping[str, str | Callable[[int], str]]) -> None:
        self._table = table
        self.calls: list[tuple[list[str], SamplingSpec, list[range]]] = []

    def load(self, weights: Any, version: int) -> None: ...

    def sample(
        self, prompts: Sequence[Prompt], spec: SamplingSpec, finished: Any = None, numbers: Any = None
    ) -> list[Group]:
        read = [TOKENIZER.decode(prompt.token_ids, skip_special_tokens=True) for prompt in prompts]
        self.calls.append((read, spec, numbers))

        def trajectory(text: str, sample: int) -> Trajectory:
            said = self._table[text]
            said = said if isinstance(said, str) else said(sample)
            tokens = np.array([*ids(said.rstrip("~")), *([] if said.endswith("~") else [EOS])], np.int32)
            segment = Segment(tokens, np.full(len(tokens), -0.5, np.float32), 3)
            return Trajectory((segment,), said.rstrip("~"), "length" if said.endswith("~") else "stop", sample)

        return [
            Group(prompt, tuple(trajectory(text, k) for k in samples))
            for prompt, text, samples in zip(prompts, read, numbers, strict=True)
        ]


class Echo:
    """Answers with what was said, in brackets; `!` ends it with a reward of 1."""

    opened: ClassVar[list[Echo]] = []

    def __init__(self) -> None:
        self.log: list[str] = []
        Echo.opened.append(self)

    def reset(self, problem: Problem) -> None:
        self.log.append(f"reset {problem.id}")

    def step(self, text: str) -> StepResult:
        self.log.append(text)
        return StepResult(f"[{text}]", 1.0 if "!" in text else 0.25, done="!" in text)

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Echo.opened = []


def loop(sampler: Any, make: Any = Echo, **limits: Any) -> ToolLoop:
    caller = EnvironmentCaller("echo", seconds=60)
    return ToolLoop(sampler, TOKENIZER, FORM, make, caller, TurnLimits(**{"turns": 3} | limits))


def shown(trajectory: Trajectory) -> list[str]:
    """The segments as texts; observations in braces."""
    texts = [TOKENIZER.decode(segment.token_ids, skip_special_tokens=True) for segment in trajectory.segments]
    return [
        text if segment.is_trained else f"{{{text}}}" for text, segment in zip(texts, trajectory.segments, strict=True)
    ]


def test_turns_and_observations_alternate_until_the_environment_is_done():
    sampler = Script({"1+1=": lambda k: ["3", "2!"][k], "1+1=3[3]": "2!"})
    heard = []
    (group,) = loop(sampler).sample([make_prompt()], spec(), lambda prompt, t: heard.append((prompt, t)))
    first, second = group.trajectories
    assert shown(first) == ["3", "{[3]}", "2!"]
    assert shown(second) == ["2!"]
    assert (first.text, second.text) == ("2!", "2!")
    assert (first.finish_reason, second.finish_reason) == ("stop", "stop")
    assert (first.turn_rewards, second.turn_rewards) == ((0.25, 1.0), (1.0,))
    assert [t for _, t in heard] == [second, first], "each as it ends, the objects of the group"
    assert [e.log for e in Echo.opened if len(e.log) == 4] == [["reset p", "3", "2!", "close"]]
    assert [len(calls[0]) for calls in sampler.calls] == [1, 1], "a group shares its prompt; later contexts are single"
    assert sampler.calls[1][2] == [range(1)], "with the number of its sample"


def test_a_rollout_that_is_not_done_after_its_last_turn_is_cut():
    sampler = Script({"1+1=": "3", "1+1=3[3]": "4"})
    ((trajectory,),) = (g.trajectories for g in loop(sampler, turns=2).sample([make_prompt()], spec(group_size=1)))
    assert shown(trajectory) == ["3", "{[3]}", "4"]
    assert (trajectory.finish_reason, trajectory.turn_rewards) == ("length", (0.25, 0.25))


def test_the_limit_of_tokens_counts_the_policys_own_and_cuts_the_turn():
    sampler = Script({"1+1=": "345", "1+1=345[345]": "6789"})
    ((trajectory,),) = (
        g.trajectories for g in loop(sampler).sample([make_prompt()], spec(group_size=1, max_new_tokens=6))
    )
    assert shown(trajectory) == ["345", "{[345]}", "67"]
    assert (trajectory.text, trajectory.finish_reason) == ("67", "length")
    assert len(trajectory.trained_ids) == len(trajectory.logprobs) == 6
    assert trajectory.turn_rewards == (0.25, 0.0), "the environment never saw the cut turn"
    assert [calls[1].max_new_tokens for calls in sampler.calls] == [6, 2]


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (100, ["345", "{[345]}", "6789", "{[6789]}", "2!"]),
        (21, ["345", "{[345]}", "6789"]),  # the prompt has 4 tokens, and each turn its EOS: 18, and no room behind 24
        (17, ["345", "{[345]}", "6789"]),
        (15, ["345", "{[345]}", "67"]),
        (13, ["345"]),
        (6, ["34"]),
    ],
)
def test_what_the_model_cannot_read_any_more_ends_the_rollout_as_length(context: int, expected: list[str]):
    sampler = Script({"1+1=": "345", "1+1=345[345]": "6789", "1+1=345[345]6789[6789]": "2!"})
    (group,) = loop(sampler, context=context).sample([make_prompt()], spec(group_size=1))
    (trajectory,) = group.trajectories
    assert shown(trajectory) == expected
    assert trajectory.finish_reason == ("stop" if context == 100 else "length")
    assert 4 + len(trajectory.token_ids) <= context
    assert trajectory.segments[-1].is_trained, "nothing is read for nothing"


def test_a_turn_that_is_cut_ends_the_rollout():
    sampler = Script({"1+1=": "345~"})
    ((trajectory,),) = (g.trajectories for g in loop(sampler, tokens=3).sample([make_prompt()], spec(group_size=1)))
    assert (trajectory.finish_reason, trajectory.turn_rewards) == ("length", None)
    assert sampler.calls[0][1].max_new_tokens == 3
    assert Echo.opened == [], "nothing to answer"


@pytest.mark.parametrize("where", ["__init__", "reset", "step", "close"])
def test_a_failing_environment_costs_its_own_rollout_alone(where: str):
    def fail(*_: Any) -> Any:
        raise ValueError("broken")

    make = fail if where == "__init__" else type("Broken", (Echo,), {where: fail})
    sampler = Script({"1+1=": "2!"})
    ((trajectory,),) = (g.trajectories for g in loop(sampler, make).sample([make_prompt()], spec(group_size=1)))
    assert shown(trajectory) == ["2!"]
    reason = None if trajectory.verdict is None else trajectory.verdict.reason
    assert reason == (None if where == "close" else "ValueError in echo")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: None, "echo: step did not return (observation, reward, done)"),
        (lambda: 1 / 0, "ZeroDivisionError in echo"),
        (lambda: sys.exit(3), "SystemExit in echo"),
    ],
)
def test_one_bad_environment_among_good_ones_loses_nothing_else(answer: Callable[[], Any], reason: str, is_async: bool):
    class Bad(Echo):
        def step(self, text: str) -> Any:
            async def later() -> Any:
                return answer()

            if text != "bad":
                return super().step(text)
            return later() if is_async else answer()

    sampler = Script({"1+1=": lambda k: ["2!", "bad", "3"][k], "1+1=3[3]": "2!"})
    (group,) = loop(sampler, Bad).sample([make_prompt()], spec(group_size=3))
    assert [shown(trajectory) for trajectory in group.trajectories] == [["2!"], ["bad"], ["3", "{[3]}", "2!"]]
    assert [t.verdict for t in group.trajectories] == [None, Verdict.undecided(reason), None]
    assert [environment.log[-1] for environment in Echo.opened] == ["close"] * 3


def test_a_verdict_of_the_environment_is_that_of_the_rollout():
    class Judge(Echo):
        def step(self, text: str) -> StepResult:
            return StepResult("", Verdict.right("solved"), done=True) if "!" in text else super().step(text)

    sampler = Script({"1+1=": lambda k: ["2!", "3~"][k]})
    (group,) = loop(sampler, Judge).sample([make_prompt()], spec())
    assert [t.verdict for t in group.trajectories] == [Verdict.right("solved"), None], "who was cut has none"
    assert [t.turn_rewards for t in group.trajectories] == [None, None]


def test_environments_are_closed_when_sampling_is_ended():
    sampler = Script({"1+1=": lambda k: ["3", "2!"][k], "1+1=3[3]": "2!"})

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop(sampler).sample([make_prompt()], spec(), stop)
    assert len(Echo.opened) == 2
    assert all(environment.log[-1] == "close" for environment in Echo.opened)


# --- a real sampler ----------------------------------------------------------------------------------------------


class Colons:
    """Answers with two colons."""

    def reset(self, problem: Problem) -> None: ...

    def step(self, text: str) -> StepResult:
        return StepResult("::", 0.5)

    def close(self) -> None: ...


def end_often(module: Any) -> Any:
    head = module.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0], dtype=head.weight.dtype))
    with torch.no_grad():
        others = module(input_ids=torch.arange(3, 40).unsqueeze(0)).logits.logsumexp(-1).mean()
        head.bias[EOS] = others + math.log(0.3)
    return module


def test_the_trainer_gives_sampled_tokens_the_samplers_log_probs_in_every_turn(make_model: Any, make_prompts: Any):
    module = end_often(make_model("qwen2"))
    sampler = TransformersSampler(module, TOKENIZER, device=CPU, precision="fp32", max_rows=100)
    prompts = make_prompts(5, 9)
    groups = loop(sampler, Colons).sample(prompts, spec(group_size=4, max_new_tokens=30))
    trajectories = [t for group in groups for t in group.trajectories]
    assert max(len(t.turns) for t in trajectories) == 3, "the task has turns"
    assert {t.finish_reason for t in trajectories} == {"length"}
    judged = [Group(g.prompt, g.trajectories, tuple(Verdict.wrong("x") for _ in g.trajectories)) for g in groups]
    batch = collate_groups(judged, 1, step_ends=lambda tokens: [len(tokens) - 1])
    scores = LanguageModel(module, device=CPU, precision="fp32", micro_batch_tokens=10_000).scores(batch)
    assert batch.sampler_logprobs_BT is not None
    torch.testing.assert_close(scores.logprobs_BT, batch.sampler_logprobs_BT, atol=1e-5, rtol=1e-5)
    assert batch.turn_rewards_BT is not None
    assert batch.turn_rewards_BT.sum() == sum(sum(t.turn_rewards or ()) for t in trajectories)


def test_the_first_turn_is_drawn_as_without_an_environment_and_later_ones_anew(make_model: Any, make_prompts: Any):
    module = end_often(make_model("qwen2"))

    def sampler() -> Any:
        return TransformersSampler(module, TOKENIZER, device=CPU, precision="fp32", max_rows=100)

    prompts = make_prompts(5)
    (alone,) = sampler().sample(prompts, spec(group_size=6))
    (turns,) = loop(sampler(), Colons).sample(prompts, spec(group_size=6))
    (again,) = loop(sampler(), Colons).sample(prompts, spec(group_size=6))
    for one, other, repeated in zip(alone.trajectories, turns.trajectories, again.trajectories, strict=True):
        assert one.segments[0].token_ids.tolist() == other.segments[0].token_ids.tolist()
        assert other.token_ids.tolist() == repeated.token_ids.tolist()
    firsts = {tuple(t.turns[0].tolist()) for t in turns.trajectories}
    seconds = {tuple(t.turns[1].tolist()) for t in turns.trajectories if len(t.turns) > 1}
    assert len(seconds) > 1
    assert seconds != firsts
