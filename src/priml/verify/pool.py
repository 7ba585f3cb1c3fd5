"""From one response to all of a step: the only place in `verify` that knows groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from priml.errors import DataError
from priml.types import Group, Problem, Verdict
from priml.verify.base import Verifier

_THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class VerifierPool:
    """Judges whole groups with a verifier of single responses: the loop's `roles.verify`."""

    def __init__(self, verifier: Verifier) -> None:
        """`verifier.grade` will be called from several threads at once."""
        self._verifier = verifier

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with one verdict per completion. Whatever comes back undecided has been asked twice."""
        items = [(group.prompt.problem, completion.text) for group in groups for completion in group.completions]
        verdicts = iter(fan_out(self._grade, items))
        return [replace(group, verdicts=tuple(next(verdicts) for _ in group.completions)) for group in groups]

    def _grade(self, item: tuple[Problem, str]) -> Verdict:
        verdict = self._verifier.grade(*item)
        return verdict if verdict.correct is not None else self._verifier.grade(*item)


class ByKind:
    """The `Verifier` of mixed data: passes each problem to the verifier of its kind."""

    def __init__(self, verifiers: Mapping[str, Verifier]) -> None:
        """`verifiers` by `Problem.kind`."""
        self._verifiers = dict(verifiers)

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The verdict of the verifier responsible.

        Raises:
            DataError: no verifier was given for this kind of problem.
        """
        verifier = self._verifiers.get(problem.kind)
        if verifier is None:
            raise DataError(
                f"problem {problem.id!r} is of kind {problem.kind!r}, for which there is no verifier "
                f"(there is one for: {', '.join(sorted(self._verifiers))}). "
                "Correct the kind in the data, leave these problems out, or name a verifier for them under `verify`."
            )
        return verifier.grade(problem, response)


def fan_out(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in order. The threads only wait: for worker processes, for a service."""
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="verify") as threads:
        return list(threads.map(function, items))
