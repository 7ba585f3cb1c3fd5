"""The one thing every verifier does, and what the loop makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from priml.types import Completion, Group, Problem, Prompt, Verdict


class Verifier(Protocol):
    """Judges one response against the gold answer of its problem.

    The contract:

    - The same text gets the same verdict, whatever was graded before or beside it. `grade` may be called from several
      threads at once (`priml.graders.pool` does so).
    - What the response brings on itself is *wrong, with a reason*: no answer, too long, over the time or memory limit.
      Otherwise a policy could learn to be ungradable.
    - Only a failure on our side is *undecided, with a reason* (a worker was lost, a service did not answer). A verifier
      never guesses and never turns such a failure into a number.
    - It returns within a bounded time and never runs the response's text as code in this process.
    """

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The verdict on `response`, the decoded text of one completion."""
        ...


class GroupVerifier(Protocol):
    """Judges what a sampler makes: `groups = sampler.sample(prompts, spec, verify.begin)`, then `verify(groups)`."""

    def begin(self, prompt: Prompt, completion: Completion) -> None:
        """Start judging a finished response while others are being sampled. Returns at once."""
        ...

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with one verdict per completion, whether or not its judging was begun before."""
        ...
