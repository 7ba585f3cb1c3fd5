"""Environments of the `verifiers` package, where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest

from priml.data.sources import problems_from_rows
from priml.errors import ConfigError, UsageError
from priml.rollout.environment import EnvironmentCaller, EnvironmentFailed, StepResult
from priml.rollout.verifiers import VerifiersEnvironment, rows
from priml.types import Message, Problem, Verdict

CALLER = EnvironmentCaller("theirs", seconds=60)


@pytest.fixture
def vf() -> Any:
    pytest.importorskip("verifiers.types", reason="needs the extra `verifiers`")
    return importlib.import_module("verifiers")


def higher_or_lower(vf: Any, reward: Any = None, **more: Any) -> Any:
    """Guess the answer; the environment says where it is."""
    from datasets import Dataset

    class Guess(vf.MultiTurnEnv):
        async def env_response(self, messages: Sequence[Any], state: Any, **_: Any) -> Any:
            guess, answer = int(messages[-1].content), int(state["answer"])
            if guess == answer:
                state["final_env_response"] = [vf.UserMessage(content="right")]
                return state["final_env_response"]
            return [vf.UserMessage(content="higher" if guess < answer else "lower")]

    def is_found(completion: Any, answer: str) -> float:
        return float(completion[-1].content == "right")

    data = Dataset.from_list([{"question": "1 to 9?", "answer": "4"}, {"question": "0 to 9?", "answer": "0"}])
    return Guess(dataset=data, system_prompt="Guess.", rubric=vf.Rubric(funcs=[reward or is_found]), **more)


def begun(environment: Any, **more: Any) -> VerifiersEnvironment:
    made = VerifiersEnvironment(environment, **more)
    problem = problems_from_rows(rows(environment), origin="guess")[0]
    CALLER(lambda: made.reset(problem))
    return made


def test_its_rows_are_problems(vf: Any):
    first, second = problems_from_rows(rows(higher_or_lower(vf)), origin="guess")
    assert first.prompt == (Message("system", "Guess."), Message("user", "1 to 9?"))
    assert (first.answer, first.id, second.id) == ("4", "train-0", "train-1")


def test_turns_alternate_and_its_rubric_is_the_judge(vf: Any):
    made = begun(higher_or_lower(vf))
    assert CALLER.step(made, "2") == StepResult("higher")
    assert CALLER.step(made, "7") == StepResult("lower")
    assert CALLER.step(made, "4") == StepResult("", Verdict.right("has_final_env_response"), done=True)
    CALLER(made.close)


def test_its_own_limit_of_turns_ends_the_rollout(vf: Any):
    made = begun(higher_or_lower(vf, max_turns=2))
    CALLER.step(made, "2")
    assert CALLER.step(made, "3") == StepResult("", Verdict.wrong("max_turns_reached"), done=True)


def test_failures_are_named_and_never_a_number(vf: Any):
    def broken(completion: Any) -> float:
        raise ValueError("no")

    def large(completion: Any) -> float:
        return 3.0

    with pytest.raises(EnvironmentFailed, match="ValueError in theirs"):
        CALLER.step(begun(higher_or_lower(vf)), "four")
    with pytest.raises(EnvironmentFailed, match="ValueError in a reward function of verifiers"):
        CALLER.step(begun(higher_or_lower(vf, broken)), "4")
    with pytest.raises(EnvironmentFailed, match="reward outside of 0 to 2"):
        CALLER.step(begun(higher_or_lower(vf, large), highest=2.0), "4")
    made = VerifiersEnvironment(higher_or_lower(vf))
    with pytest.raises(EnvironmentFailed, match="problem without a row"):
        CALLER(lambda: made.reset(Problem("p", "", "")))


def test_what_cannot_be_mapped_is_refused(vf: Any):
    def compare(completions: Any) -> list[float]:
        return [0.0 for _ in completions]

    async def tool(x: int) -> int:
        """Add one."""
        return x + 1

    with pytest.raises(UsageError, match="compare the rollouts of a group"):
        VerifiersEnvironment(higher_or_lower(vf, compare))
    with pytest.raises(UsageError, match="is no vf"):
        VerifiersEnvironment(vf.EnvGroup([higher_or_lower(vf)]))
    with pytest.raises(UsageError, match="has tools, and a turn is a text"):
        VerifiersEnvironment(vf.ToolEnv(tools=[tool], dataset=higher_or_lower(vf).dataset))


def test_calls_of_tools_are_found_in_the_text(vf: Any):
    async def double(x: int) -> int:
        """Double x."""
        return 2 * x

    def calls(text: str) -> list[tuple[str, str]]:
        return [("double", f'{{"x": {text[5:]}}}')] if text.startswith("call ") else []

    environment = vf.ToolEnv(tools=[double], dataset=higher_or_lower(vf).dataset, rubric=vf.Rubric(funcs=[is_long]))
    made = begun(environment, calls=calls)
    assert CALLER.step(made, "call 21") == StepResult("42")
    assert CALLER.step(made, "42.").done


def is_long(completion: Any) -> float:
    return float(len(completion) == 3)


def test_without_the_package_the_message_names_the_extra():
    try:
        importlib.import_module("verifiers.types")
    except ModuleNotFoundError:
        with pytest.raises(ConfigError, match=r"pip install 'priml\[verifiers\]'"):
            VerifiersEnvironment(object())
