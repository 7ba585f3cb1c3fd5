"""From the settings of a verifier to the objects: those that some problem needs, and no others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from priml.config import graders as config
from priml.errors import DataError
from priml.factories.gold_check import check_golds
from priml.graders.base import Verifier
from priml.graders.choice import ChoiceVerifier, right_letter
from priml.graders.code import CodeVerifier
from priml.graders.custom import CustomVerifier
from priml.graders.exact import ExactVerifier
from priml.graders.math.verifier import MathVerifier
from priml.graders.mixed import MixedVerifier, responsible
from priml.sandbox import Limits, Sandbox, open_sandbox
from priml.types import Problem

logger = logging.getLogger(__name__)

Table = Mapping[str, config.SingleVerifier]


@dataclass(frozen=True, slots=True)
class Judge:
    """The verifier of a run, and the isolation under which it runs programs of responses."""

    verifier: Verifier
    isolation: tuple[str, ...]
    """The level in force of each sandbox that was opened; empty when no problem needs one."""

    def is_same(self, problem: Problem, answer: str, other: str) -> bool:
        """Whether one answer to a problem would be right if the other were its gold answer."""
        return self.verifier.grade(replace(problem, answer=other), f"\\boxed{{{answer}}}").correct is True


def build_verifier(settings: config.Verify, problems: Sequence[Problem], *, check: bool = True) -> Judge:
    """The verifier for these problems. Sandboxes are opened here, so that what is missing is missed before the run.

    `check`: grade a sample of the golds first.

    Raises:
        DataError: there is no verifier for a problem, the one there is cannot judge it, or the golds of a sample
            cannot tell right from wrong.
        SandboxUnavailable: programs are to be run, and nothing isolates them as the settings demand.
    """
    kinds, sources = _tables(settings, problems)
    needed: dict[int, config.SingleVerifier] = {}
    for problem in problems:
        chosen = responsible(problem, kinds, sources)
        _check(problem, chosen)
        needed[id(chosen)] = chosen
    sandboxes = _sandboxes([chosen for chosen in needed.values() if isinstance(chosen, config.CodeVerifier)])
    made = {key: _make(chosen, sandboxes) for key, chosen in needed.items()}
    for key, chosen in needed.items() if check else ():
        check_golds([p for p in problems if responsible(p, kinds, sources) is chosen], chosen, made[key])
    verifier = MixedVerifier(
        {name: made[id(chosen)] for name, chosen in kinds.items() if id(chosen) in made},
        {name: made[id(chosen)] for name, chosen in sources.items() if id(chosen) in made},
    )
    return Judge(verifier, tuple(sandbox.level for sandbox in sandboxes.values()))


def _tables(settings: config.Verify, problems: Sequence[Problem]) -> tuple[Table, Table]:
    """Settings by kind and by source. Mathematics and code are for problems of their kind, the others for all."""
    match settings:
        case config.MixedVerifier():
            return settings.kinds, settings.sources or {}
        case config.MathVerifier() | config.CodeVerifier():
            return {settings.kind: settings}, {}
        case _:
            return {problem.kind: settings for problem in problems}, {}


def _check(problem: Problem, chosen: config.SingleVerifier) -> None:
    """Check that a problem has what its verifier needs besides an answer."""
    if isinstance(chosen, config.ChoiceVerifier):
        right_letter(problem)
    if isinstance(chosen, config.CodeVerifier) and problem.tests is None:
        raise DataError(
            f"problem {problem.id!r} (source {problem.source!r}, kind {problem.kind!r}) has no tests, so a program "
            "cannot be judged; correct the `ability` in the data, or name another verifier for it under `verify`"
        )


def _sandboxes(chosen: Sequence[config.CodeVerifier]) -> dict[config.Sandbox, Sandbox]:
    opened: dict[config.Sandbox, Sandbox] = {}
    for settings in dict.fromkeys(one.sandbox for one in chosen):
        opened[settings] = open_sandbox(**settings.model_dump())
        logger.info(f"verify: programs run in a sandbox: {opened[settings].level}")
    return opened


def _make(chosen: config.SingleVerifier, sandboxes: Mapping[config.Sandbox, Sandbox]) -> Verifier:
    match chosen:
        case config.MathVerifier():
            return MathVerifier(
                rules=chosen.rules,
                bare_answers=chosen.bare_answers,
                units=chosen.units,
                tolerance=chosen.tolerance,
                digits=chosen.digits,
                workers=chosen.workers,
                limit_s=chosen.time_limit,
            )
        case config.CodeVerifier():
            seconds = chosen.time_limit
            return CodeVerifier(
                sandboxes[chosen.sandbox],
                rules=chosen.rules,
                all_or_nothing=chosen.all_or_nothing,
                stop_early=chosen.stop_early,
                compare_tokens=chosen.compare_tokens,
                bare_programs=chosen.bare_programs,
                limits=Limits(wall_s=seconds, cpu_s=math.ceil(seconds), memory_mib=chosen.memory_mib),
            )
        case config.ChoiceVerifier():
            return ChoiceVerifier(bare_answers=chosen.bare_answers)
        case config.ExactVerifier():
            return ExactVerifier(place=chosen.place, ignore_case=chosen.ignore_case)
        case config.CustomVerifier():
            return CustomVerifier(chosen.function, limit_s=chosen.time_limit, memory_mib=chosen.memory_mib)
