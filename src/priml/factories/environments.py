"""Rollouts with turns, where the settings name an environment."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from priml.config.data import PromptFormat
from priml.config.environments import Environment as EnvironmentSettings
from priml.config.environments import PythonEnvironment
from priml.errors import UsageError
from priml.plugins import load
from priml.rollout.base import PoolableSampler
from priml.rollout.environment import Environment, EnvironmentCaller
from priml.rollout.observations import ObservationFormat, observation_format
from priml.rollout.python_tool import PythonTool
from priml.rollout.tool_loop import ToolLoop, TurnLimits
from priml.rollout.trajectories import eos_ids
from priml.sandbox import Limits, open_sandbox
from priml.types import Tokenizer

logger = logging.getLogger(__name__)


def with_environment(
    sampler: PoolableSampler,
    settings: EnvironmentSettings | None,
    module: object,
    tokenizer: Tokenizer,
    form: PromptFormat,
) -> PoolableSampler:
    """A sampler whose rollouts take turns with the environment of the settings; the sampler itself without one.
    `module` is the policy, whose EOS tokens end a turn and whose positions bound it.

    Raises:
        UsageError: the user's environment cannot be loaded.
        ModelError: the chat template has no place for observations.
        SandboxUnavailable: code would run, and nothing isolates it as the settings demand.
    """
    if settings is None:
        return sampler
    observations = _format(settings, eos_ids(module, tokenizer), tokenizer, form)
    name = "python" if isinstance(settings, PythonEnvironment) else settings.function
    context = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    limits = TurnLimits(settings.max_turns, settings.turn_tokens, context)
    # The sandbox has its own limits; the caller's is far above them.
    seconds = 10 * settings.time_limit if isinstance(settings, PythonEnvironment) else settings.time_limit
    caller = EnvironmentCaller(name, seconds=seconds)
    return ToolLoop(sampler, tokenizer, observations, _maker(settings), caller, limits)


def observed_tokens(settings: EnvironmentSettings | None, tokenizer: Tokenizer, form: PromptFormat) -> int:
    """The most tokens that observations add to a rollout."""
    if settings is None:
        return 0
    return (settings.max_turns - 1) * _format(settings, [], tokenizer, form).longest


def _format(
    settings: EnvironmentSettings, ends: list[int], tokenizer: Tokenizer, form: PromptFormat
) -> ObservationFormat:
    return observation_format(tokenizer, ends, form, role=settings.role, limit=settings.observation_tokens)


def _load_custom(spec: str) -> Callable[[], Environment]:
    made = load(spec, setting="environment.function", takes=())
    missing = [name for name in ("reset", "step", "close") if not hasattr(made, name)]
    if isinstance(made, type) and missing:
        raise UsageError(
            f"environment.function: {spec} has no {', '.join(missing)}; an environment needs reset(problem), "
            "step(text) -> (observation, reward, done) and close()"
        )
    return made


def _maker(settings: EnvironmentSettings) -> Callable[[], Environment]:
    if not isinstance(settings, PythonEnvironment):
        return _load_custom(settings.function)
    sandbox = open_sandbox(**settings.sandbox.model_dump())
    logger.info(f"environment: code runs in a sandbox: {sandbox.level}")
    seconds = settings.time_limit
    limits = Limits(wall_s=seconds, cpu_s=math.ceil(seconds * settings.max_turns), memory_mib=settings.memory_mib)
    return lambda: PythonTool(sandbox, limits)
