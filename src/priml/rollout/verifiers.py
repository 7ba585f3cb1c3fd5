"""Environments of the `verifiers` package (https://github.com/PrimeIntellect-ai/verifiers), one turn at a time.

A classic environment (`vf.MultiTurnEnv`, versions 0.2 and 0.3) asks a model itself, in its `rollout`. Here the sampler
speaks, so its parts are called in the order of that method: `setup_state`, then for each turn `add_model_response`, the
stop conditions and `get_prompt_messages`, and in the end `cleanup` and the rubric. Version 0.4 has only programs that
call a model by HTTP; these have no turns to be stepped through.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Literal, Protocol

from priml.errors import ConfigError, UsageError
from priml.rollout.environment import EnvironmentFailed, StepResult
from priml.types import Problem, Verdict

_NAME, _NOTED = "verifiers", "_priml_notes_errors"
_ERRORS: ContextVar[list[Exception]] = ContextVar("errors of reward functions")

Call = tuple[str, str]
"""A call of a tool: its name and its arguments as JSON."""


class TheirMessage(Protocol):
    """A message of theirs."""

    role: str
    content: object


class TheirRubric(Protocol):
    """What scores a rollout of theirs."""

    funcs: list[Callable[..., Any]]
    has_group_rewards: bool

    async def score_rollout(self, state: dict[str, Any]) -> None: ...


class TheirEnvironment(Protocol):
    """What is used of a `vf.MultiTurnEnv`."""

    rubric: TheirRubric
    tool_defs: Sequence[object] | None

    def get_dataset(self) -> Iterable[Mapping[str, Any]]: ...

    def get_eval_dataset(self) -> Iterable[Mapping[str, Any]]: ...

    async def init_state(
        self, input: Mapping[str, Any], client: object, model: str, sampling_args: object
    ) -> dict[str, Any]: ...

    async def setup_state(self, state: dict[str, Any]) -> dict[str, Any] | None: ...

    async def add_model_response(self, state: dict[str, Any], prompt: Sequence[TheirMessage], response: object): ...

    async def is_completed(self, state: dict[str, Any]) -> bool: ...

    async def get_prompt_messages(self, state: dict[str, Any]) -> Sequence[TheirMessage]: ...

    async def cleanup(self, state: dict[str, Any]) -> None: ...


def rows(environment: TheirEnvironment, *, split: Literal["train", "eval"] = "train") -> Iterator[dict[str, Any]]:
    """The problems of an environment, as rows for a data source of kind `custom`."""
    data = environment.get_dataset() if split == "train" else environment.get_eval_dataset()
    for row in data:
        chat = [{"role": message["role"], "content": message["content"]} for message in row["prompt"]]
        yield {
            "prompt": chat,
            "answer": row.get("answer") or "-",
            "id": f"{split}-{row['example_id']}",
            "meta": {_NAME: row},
        }


class VerifiersEnvironment:
    """An `Environment` around one of `verifiers`, which may serve any number of rollouts. Its rubric is the judge."""

    def __init__(
        self,
        environment: TheirEnvironment,
        *,
        highest: float = 1.0,
        calls: Callable[[str], Sequence[Call]] | None = None,
    ) -> None:
        """`highest` is the most that its rubric gives: the outcome is the reward's share of it, from 0 to 1. `calls`
        finds the calls of tools in a turn.

        Raises:
            ConfigError: `verifiers` is missing, or has another interface.
            UsageError: the environment cannot be stepped through.
        """
        self._vf = _import()
        _check(environment, has_calls=calls is not None)
        self._environment = environment
        self._highest = highest
        self._calls = calls
        self._state: dict[str, Any] = {}
        self._read: Sequence[TheirMessage] = ()
        """All messages before the policy's next turn."""

    async def reset(self, problem: Problem) -> None:
        """Begin with the row that `rows` has put into the problem."""
        row = problem.meta.get(_NAME)
        if row is None:
            raise EnvironmentFailed(f"{_NAME}: problem without a row of the environment; take its data from `rows`")
        state = await self._environment.init_state(row, _nobody(), "policy", {})
        self._state = state  # from here on it is cleaned up, whatever happens
        self._state = await self._environment.setup_state(state) or state
        self._read = self._state["prompt"]

    async def step(self, text: str) -> StepResult:
        """Hand the turn over. The observation is the text of all messages that follow it."""
        state, environment, read = self._state, self._environment, self._read
        await environment.add_model_response(state, read, self._response(text))
        if await environment.is_completed(state):
            return await self._end()
        self._read = await environment.get_prompt_messages(state)
        if await environment.is_completed(state):  # what it answered was its last word
            return await self._end()
        return StepResult("\n".join(_text(message) for message in self._read[len(read) + 1 :]))

    async def close(self) -> None:
        if self._state:
            state, self._state = self._state, {}
            await self._environment.cleanup(state)

    async def _end(self) -> StepResult:
        state, environment = self._state, self._environment
        await self.close()
        _ERRORS.set(errors := [])
        await environment.rubric.score_rollout(state)
        if errors:
            raise EnvironmentFailed(f"{type(errors[0]).__name__} in a reward function of {_NAME}") from errors[0]
        score = state["reward"] / self._highest
        if not 0 <= score <= 1:
            raise EnvironmentFailed(f"{_NAME}: reward outside of 0 to {self._highest:g}")
        return StepResult("", Verdict(correct=score == 1.0, score=score, reason=state["stop_condition"]), done=True)

    def _response(self, text: str) -> Any:
        found = self._calls(text) if self._calls else ()
        calls = [{"id": f"call-{i}", "name": name, "arguments": arguments} for i, (name, arguments) in enumerate(found)]
        message = self._vf.ResponseMessage(
            content=text,
            tool_calls=calls or None,
            finish_reason="tool_calls" if calls else "stop",
            is_truncated=False,
        )
        return self._vf.Response(id="turn", created=0, model="policy", message=message)


def _import() -> Any:
    try:
        found = import_module("verifiers.types")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"environments of `verifiers` need a version from 0.2 to 0.3 of it (found none: {error}); "
            "pip install 'priml[verifiers]'"
        ) from None
    return found


def _check(environment: TheirEnvironment, *, has_calls: bool) -> None:
    multi = import_module("verifiers.envs.multiturn_env").MultiTurnEnv
    name = type(environment).__name__
    if not isinstance(environment, multi):
        raise UsageError(
            f"{name} is no vf.MultiTurnEnv: it has no turns to step through; of an EnvGroup, take one of its `envs`"
        )
    if type(environment).get_prompt_messages is not multi.get_prompt_messages:
        raise UsageError(
            f"{name} writes the conversation anew for each turn (get_prompt_messages); here tokens are only appended"
        )
    if environment.rubric.has_group_rewards:
        raise UsageError(f"{name} has rewards that compare the rollouts of a group; here each rollout has its own")
    if environment.tool_defs and not has_calls:
        raise UsageError(
            f"{name} has tools, and a turn is a text; give VerifiersEnvironment(..., calls=) a function that finds "
            "the calls (name, JSON of the arguments) in it, and describe the tools in the prompt"
        )
    _note_errors(environment.rubric)


def _note_errors(rubric: TheirRubric) -> None:
    """A rubric gives 0 where a reward function raises. A failure is no number, so it is noted."""
    for inner in [rubric, *getattr(rubric, "rubrics", ())]:
        inner.funcs = [_noted(function) for function in inner.funcs]


def _noted(function: Callable[..., Any]) -> Callable[..., Any]:
    if getattr(function, _NOTED, False):
        return function

    @functools.wraps(function)
    async def noted(*args: object, **kwargs: object) -> object:
        try:
            found = function(*args, **kwargs)
            return await found if inspect.isawaitable(found) else found
        except Exception as error:
            _ERRORS.get([]).append(error)
            raise

    setattr(noted, _NOTED, True)
    return noted


@functools.cache
def _nobody() -> Any:
    """A client for an environment that is never to ask a model itself."""

    async def refuse(*_: object, **__: object) -> None:
        raise EnvironmentFailed(f"{_NAME}: the environment asks a model itself")

    client = import_module("verifiers.clients").Client
    methods = dict.fromkeys(client.__abstractmethods__, refuse)
    return type("Nobody", (client,), {**methods, "get_response": refuse})(None)


def _text(message: TheirMessage) -> str:
    if message.role not in ("user", "tool") or not isinstance(message.content, str):
        raise EnvironmentFailed(f"{_NAME}: a message that is no text of a user or a tool")
    return message.content
