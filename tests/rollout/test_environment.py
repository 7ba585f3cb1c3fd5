"""Calls of a user's environment: what it may return, and how its failures are named."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import numpy as np
import pytest
import torch

from priml.rollout.environment import EnvironmentCaller, EnvironmentFailed, StepResult
from priml.types import Verdict

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


@pytest.mark.parametrize("reward", [np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_are_numbers(reward: Any):
    assert CALLER.step(Answering(("seen", reward, np.bool_(False))), "turn") == StepResult("seen", 0.5, False)


def test_a_verdict_comes_with_the_last_turn_only():
    verdict = Verdict.right("solved")
    assert CALLER.step(Answering(("", verdict, True)), "turn") == StepResult("", verdict, True)
    with pytest.raises(EnvironmentFailed, match="step did not return"):
        CALLER.step(Answering(("", verdict, False)), "turn")


def test_half_a_surrogate_pair_is_replaced():
    assert CALLER.step(Answering(("a\ud800b", None, False)), "turn").observation == "a?b"


ERRORS = [ValueError, KeyError, SystemExit, KeyboardInterrupt, TimeoutError, GeneratorExit, MemoryError]


@pytest.mark.parametrize("error", [*ERRORS, asyncio.CancelledError])
def test_what_it_raises_is_named(error: type[BaseException]):
    def fails() -> None:
        raise error("no")

    async def fails_later() -> None:
        raise error("no")

    async def works() -> str:
        return "works"

    for function in (fails, fails_later):
        with pytest.raises(EnvironmentFailed, match=f"^{error.__name__} in mine.py:Mine$"):
            CALLER(function)
    assert CALLER(works) == "works", "and the loop goes on"


def test_its_own_reason_is_kept():
    def fails() -> None:
        raise EnvironmentFailed("python: sandbox lost")

    with pytest.raises(EnvironmentFailed, match=r"^python: sandbox lost$"):
        CALLER(fails)


def test_an_interrupt_of_the_waiting_thread_is_not_the_environments(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("priml.rollout.environment.Future.exception", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CALLER(lambda: 1)


def test_what_hangs_is_given_up():
    quick = EnvironmentCaller("mine.py:Mine", seconds=0.05)
    for function in (threading.Event().wait, lambda: asyncio.sleep(3600)):
        with pytest.raises(EnvironmentFailed, match=r"mine.py:Mine: no answer in 0.05 s"):
            quick(function)


def test_a_coroutine_that_never_yields_does_not_hold_the_others_for_ever():
    released = threading.Event()

    async def blocks() -> None:
        released.wait()

    async def works() -> str:
        return "works"

    quick = EnvironmentCaller("mine.py:Mine", seconds=0.2)
    with pytest.raises(EnvironmentFailed, match="no answer"):
        quick(blocks)
    patient = EnvironmentCaller("mine.py:Mine", seconds=60)
    patient._loop = quick._loop  # what the next call gets, however busy this machine is
    assert patient(works) == "works"
    released.set()


def test_a_fork_in_an_environment_ends_by_itself():
    async def forks_later() -> int:
        return os.fork()

    for forks in (os.fork, forks_later):
        child = CALLER(forks)
        assert child > 0, "only this process goes on"
        assert os.waitpid(child, 0)[0] == child
