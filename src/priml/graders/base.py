"""The interfaces of grading: `Verifier` for one response, `GroupVerifier` for the training loop."""

from collections.abc import Sequence
from typing import Protocol

from priml.types import Group, Problem, Prompt, Trajectory, Verdict


class Verifier(Protocol):
    """Grades one response against the gold answer of its problem.

    The contract:

    - The same text gets the same verdict, whatever was graded before or at the same time. `grade` may be called from
      several threads at once (`priml.graders.pool` does so).
    - A response that causes the failure itself is *wrong, with a reason*: no answer, too long, over the time or memory
      limit. Otherwise a policy could learn to be ungradable.
    - Only a failure of ours is *undecided, with a reason* (a worker was lost, a service did not answer). A verifier
      never guesses and never turns such a failure into a number.
    - It returns within a bounded time and never runs the response's text as code in this process.
    """

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the verdict on `response`, the decoded text of one trajectory."""
        ...


class GroupVerifier(Protocol):
    """Grades whole groups: `groups = sampler.sample(prompts, spec, verify.submit)`, then `verify(groups)`.

    The sampler calls `submit` for each response that has ended, so most verdicts are there when sampling is done.
    """

    def submit(self, prompt: Prompt, trajectory: Trajectory) -> None:
        """Start to grade one response and return at once."""
        ...

    def __call__(self, groups: Sequence[Group]) -> list[Group]:
        """Return the same groups with one verdict per trajectory, whether it was submitted before or not."""
        ...
