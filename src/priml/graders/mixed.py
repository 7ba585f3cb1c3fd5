"""Several verifiers in one run: each problem goes to the one for its source, else to the one for its kind."""

from collections.abc import Mapping
from itertools import accumulate
from typing import TypeVar

from priml.errors import DataError
from priml.graders.base import Verifier
from priml.types import Problem, Verdict

Choice = TypeVar("Choice")


class MixedVerifier:
    """The `Verifier` of mixed data."""

    def __init__(self, kinds: Mapping[str, Verifier], sources: Mapping[str, Verifier] | None = None) -> None:
        """Keys of `kinds`: `Problem.kind`. Keys of `sources`: `Problem.source` or its start before a `/`; they win."""
        self._kinds = dict(kinds)
        self._sources = dict(sources or {})

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the verdict of the verifier for this problem.

        Raises:
            DataError: there is none for this problem.
        """
        return responsible(problem, self._kinds, self._sources).grade(problem, response)


def responsible(problem: Problem, kinds: Mapping[str, Choice], sources: Mapping[str, Choice]) -> Choice:
    """Return the entry for the problem's source (the longest name that fits), else for its kind.

    Raises:
        DataError: there is neither.
    """
    for name in reversed(list(accumulate(problem.source.split("/"), "{}/{}".format))):
        if name in sources:
            return sources[name]
    if problem.kind in kinds:
        return kinds[problem.kind]
    named = f"; for sources: {', '.join(sorted(sources))}" if sources else ""
    raise DataError(
        f"problem {problem.id!r} (source {problem.source!r}) is of kind {problem.kind!r}, for which there is no "
        f"verifier (there is one for: {', '.join(sorted(kinds)) or 'no kind'}{named}). Correct the `ability` in the "
        "data, leave these problems out, or name a verifier for them with verify: {kind: mixed, kinds: {...}}"
    )
