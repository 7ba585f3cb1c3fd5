"""The one thing every verifier does."""

from __future__ import annotations

from typing import Protocol

from priml.types import Problem, Verdict


class Verifier(Protocol):
    """Judges one response against the gold answer of its problem.

    The contract:

    - The same text gets the same verdict, whatever was graded before or beside it. `grade` may be called from several
      threads at once (`priml.verify.pool` does so).
    - What the response brings on itself is *wrong, with a reason*: no answer, too long, over the time or memory limit.
      Otherwise a policy could learn to be ungradable.
    - Only a failure on our side is *undecided, with a reason* (a worker was lost, a service did not answer). A verifier
      never guesses and never turns such a failure into a number.
    - It returns within a bounded time and never runs the response's text as code in this process.
    """

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The verdict on `response`, the decoded text of one completion."""
        ...
