"""Calls of a user's environment: what it may return, and how its failures are named."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from priml.rollout.environment import EnvironmentCaller, EnvironmentFailed, StepResult

CALLER = EnvironmentCaller("mine.py:Mine", seconds=60)


class Answering:
    """An environment with one answer."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def reset(self, problem: Any) -> None: ...

    def step(self, text: str) -> Any:
        return self._answer

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (("seen", None, False), StepResult("seen")),
        (("", 0.5, True), StepResult("", 0.5, True)),
        (StepResult("seen", 1, False), StepResult("seen", 1, False)),
    ],
)
def test_a_step_returns_three_values(answer: Any, result: StepResult):
    assert CALLER.step(Answering(answer), "turn") == result


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "seen",
        ("seen", 0.5),
        (None, 0.5, False),
        ("seen", "0.5", False),
        ("seen", float("nan"), False),
        ("seen", float("inf"), False),
        ("seen", 0.5, None),
        ("seen", 0.5, False, {}),
        ["seen", 0.5, False],
        {"observation": "seen"},
    ],
)
def test_any_other_answer_is_named(answer: Any):
    with pytest.raises(EnvironmentFailed, match=r"mine.py:Mine: step did not return \(observation, reward, done\)"):
        CALLER.step(Answering(answer), "turn")


def test_an_async_environment_is_awaited_in_one_loop():
    loops = []

    class Async(Answering):
        async def step(self, text: str) -> Any:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return f"you said {text}", None, False

    assert CALLER.step(Async(None), "a").observation == "you said a"
    assert CALLER.step(Async(None), "b").observation == "you said b"
    assert loops[0] is loops[1]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyError])
def test_what_it_raises_is_named(error: type[BaseException]):
    def fails() -> None:
        raise error("no")

    async def fails_later() -> None:
        raise error("no")

    for function in (fails, fails_later)[: 1 if error is SystemExit else 2]:  # a loop ends with SystemExit
        with pytest.raises(EnvironmentFailed, match=f"^{error.__name__} in mine.py:Mine$"):
            CALLER(function)


def test_what_hangs_is_given_up():
    quick = EnvironmentCaller("mine.py:Mine", seconds=0.05)
    for function in (threading.Event().wait, lambda: asyncio.sleep(3600)):
        with pytest.raises(EnvironmentFailed, match=r"mine.py:Mine: no answer in 0.05 s"):
            quick(function)
