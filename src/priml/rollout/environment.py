"""An environment answers the policy between its turns: a tool, a game, another program."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, Protocol

from priml.types import Problem, Verdict


class StepResult(NamedTuple):
    """What an environment answers to a turn."""

    observation: str
    """What the policy reads next. Not looked at when `done`."""
    reward: float | Verdict | None = None
    """Paid at the last token of the turn, besides the process reward. None: nothing. A `Verdict`, with the last turn:
    what the whole is worth, and then no verifier is asked."""
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
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, function: Callable[[], Any]) -> Any:
        """What the function returns.

        Raises:
            EnvironmentFailed: it raised, or took too long. A plain function that hangs keeps its thread.
        """
        found: Future[Any] = Future()
        process = os.getpid()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # a border: whatever ends a user's code ends this call and nothing else
                _end_copies(process)
                found.set_exception(error)
            else:
                _end_copies(process)
                found.set_result(result)

        threading.Thread(target=work, name="environment", daemon=True).start()
        result = self._result(found)
        if inspect.isawaitable(result):
            loop = self._running_loop()
            try:
                result = self._result(asyncio.run_coroutine_threadsafe(_await(result, os.getpid()), loop))
            except _Late:
                self._leave_if_stuck(loop)
                raise
        return result

    def step(self, environment: Environment, text: str) -> StepResult:
        """The environment's answer to a turn.

        Raises:
            EnvironmentFailed: as above, or the answer is not a `StepResult`.
        """
        found = self(lambda: environment.step(text))  # a missing method is its failure, too
        if isinstance(found, tuple) and len(found) == 3:
            observation, reward, done = map(_plain, found)
            is_known = reward is None or (isinstance(reward, int | float) and math.isfinite(reward))
            if isinstance(reward, Verdict):
                is_known = bool(done)
            if isinstance(observation, str) and is_known and isinstance(done, bool):
                # Half a surrogate pair is a str, and no tokenizer takes it.
                return StepResult(observation.encode("utf-8", "replace").decode("utf-8"), reward, done)
        raise EnvironmentFailed(f"{self._name}: step did not return (observation, reward, done)")

    def _result(self, call: Future[Any]) -> Any:
        try:
            error = call.exception(self._seconds)  # an interrupt of the waiting thread is not the environment's
        except TimeoutError:
            call.cancel()
            raise _Late(f"{self._name}: no answer in {self._seconds:g} s") from None
        except CancelledError as cancelled:
            error = cancelled
        if isinstance(error, EnvironmentFailed):
            raise error
        if error is not None:
            raise EnvironmentFailed(f"{type(error).__name__} in {self._name}") from error
        return call.result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(loop,), name="environment-async", daemon=True).start()
            return self._loop

    def _leave_if_stuck(self, loop: asyncio.AbstractEventLoop) -> None:
        """A coroutine that never yields holds its loop for ever. Later calls get another one."""
        try:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(self._seconds)
        except TimeoutError:
            with self._lock:
                if self._loop is loop:
                    self._loop = None


class _Late(EnvironmentFailed):
    pass


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:  # a task that raises SystemExit ends its loop, and others are waiting
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


def _end_copies(process: int) -> None:
    """A function that forks returns in its copy of this process, too, where nobody waits for it."""
    if os.getpid() != process:
        os._exit(0)


async def _await(awaitable: Awaitable[Any], process: int) -> Any:
    try:
        return await awaitable
    finally:
        _end_copies(process)


def _plain(value: object) -> Any:
    """A number of numpy or torch as one of Python's."""
    is_number = getattr(value, "ndim", None) == 0
    return value.item() if is_number else value  # pyright: ignore[reportAttributeAccessIssue]
