"""Settings of environments: what answers the policy between its turns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from priml.config.base import CustomFunction, Settings, ShortForm
from priml.config.graders import AutoSandbox, Sandbox


class _Environment(Settings):
    """The limits of a rollout with turns. All its trained tokens together are bounded by `sampling.max_new_tokens`."""

    max_turns: PositiveInt = 4
    """Turns of the policy. A rollout that is not done after the last one counts as cut."""
    turn_tokens: PositiveInt | None = None
    """Longest turn; a longer one ends the rollout with finish_reason `length`. null: as many as are left."""
    observation_tokens: PositiveInt = 512
    """Longest observation; a longer one is cut in the middle."""
    time_limit: PositiveFloat = 30.0
    """Seconds for one answer of the environment. A later one leaves the rollout undecided."""
    role: Literal["user", "tool"] = "user"
    """Whose message the chat template makes of an observation. Without a chat template it stands between the turns as
    it is."""


class PythonEnvironment(_Environment):
    """Python as a tool. The code blocks (```python) of a turn run in the sandbox, and their output is what the policy
    reads next. A turn without a code block is the last one."""

    kind: Literal["python"]
    sandbox: Sandbox = AutoSandbox()
    """Where the code runs."""
    memory_mib: PositiveInt = 1024
    """Memory that the code may allocate."""


class CustomEnvironment(_Environment):
    """Your own environment: a class with `reset(problem)`, `step(text)` and `close()`, one object for each rollout."""

    kind: Literal["custom"]
    function: CustomFunction
    """`path/to/file.py:Name` or `package.module:Name`. It is called without arguments."""


Environment = Annotated[PythonEnvironment | CustomEnvironment, Field(discriminator="kind"), ShortForm()]
