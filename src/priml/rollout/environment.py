"""An environment answers the policy between its turns: a tool, a game, another program."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from priml.types import Problem


class StepResult(NamedTuple):
    """What an environment answers to a turn."""

    observation: str
    """What the policy reads next. Not looked at when `done`."""
    reward: float | None = None
    """Paid at the last token of the turn, besides the process reward. None: nothing."""
    done: bool = False
    """The turn was the last one."""


class Environment(Protocol):
    """One environment for each rollout. The methods may be `async`; then they share one event loop."""

    def reset(self, problem: Problem) -> object:
        """Begin with a problem. Called once, before the first `step`."""
        ...

    def step(self, text: str) -> Any:
        """Answer a turn with a `StepResult`, or the same three values as a tuple. `text` has no special tokens."""
        ...

    def close(self) -> object:
        """The rollout has ended. Called once, whatever went wrong."""
        ...


class EnvironmentFailed(Exception):
    """An environment raised, answered too late, or with something else than a `StepResult`. The text is a reason for an
    undecided verdict: short and stable."""


class EnvironmentCaller:
    """Calls the methods of users' environments, plain or async. Safe to use from several threads."""

    def __init__(self, name: str, *, seconds: float) -> None:
        """`name` is that of the environment in messages; `seconds` is the limit of each call."""
        self._name = name
        self._seconds = seconds

    def __call__(self, function: Callable[[], Any]) -> Any:
        """What the function returns.

        Raises:
            EnvironmentFailed: it raised, or took too long. A plain function that hangs keeps its thread.
        """
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="environment", daemon=True).start()
        try:
            result = future.result(self._seconds)
            if inspect.isawaitable(result):
                result = asyncio.run_coroutine_threadsafe(_await(result), self._loop).result(self._seconds)
        except TimeoutError:
            raise EnvironmentFailed(f"{self._name}: no answer in {self._seconds:g} s") from None
        except (Exception, SystemExit) as error:
            raise EnvironmentFailed(f"{type(error).__name__} in {self._name}") from error
        return result

    def step(self, environment: Environment, text: str) -> StepResult:
        """The environment's answer to a turn.

        Raises:
            EnvironmentFailed: as above, or the answer is not a `StepResult`.
        """
        found = self(lambda: environment.step(text))  # a missing method is its failure, too
        if isinstance(found, tuple) and len(found) == 3:
            observation, reward, done = found
            is_number = isinstance(reward, int | float) and reward == reward and abs(reward) != float("inf")
            if isinstance(observation, str) and (reward is None or is_number) and isinstance(done, bool):
                return StepResult(observation, reward, done)
        raise EnvironmentFailed(f"{self._name}: step did not return (observation, reward, done)")

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="environment-async", daemon=True).start()
        return loop


async def _await(awaitable: Any) -> Any:
    return await awaitable
