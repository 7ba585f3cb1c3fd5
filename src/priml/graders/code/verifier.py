"""Grade programs: extract the program of a response and run its tests in a sandbox."""

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Literal

from priml.errors import DataError
from priml.graders.code import compare
from priml.graders.code.extract import MAX_PROGRAM, extract_like_authors, extract_program
from priml.graders.code.grading import BrokenTests, Comparison, Grading
from priml.graders.code.guest_tests import PASSED
from priml.graders.code.instrument import BrokenError, check_tests
from priml.graders.pool import fan_out
from priml.sandbox import Limits, Sandbox, SandboxLost, open_sandbox
from priml.types import CodeTests, Problem, Verdict

Rules = Literal["strict", "authors"]
"""`strict`: output as a judge would have it. `authors`: the lenient rules of the program published with the paper."""

_COMPARISONS: dict[Rules, Comparison] = {
    "strict": Comparison(compare.same_output, compare.same_value),
    "authors": Comparison(compare.authors_same_output, compare.same_item),
}


class CodeVerifier:
    """The `Verifier` for programs: the score is the share of tests passed, *correct* only when that is all of them.

    The expected values stay out of the program's sandbox, so it can neither find them nor forge a verdict. Only text
    and plain values come out of it. They are compared here, or by the test program in a sandbox of its own.

    Reasons for *wrong*, that of the first failed test: `no answer` (no complete code block), `too long` (over 100,000
    characters), `wrong answer`, `exception: NAME` (a builtin class), `time limit`, `memory limit`, `output limit`,
    `crash`. *Undecided*: `worker lost` (the sandbox broke twice), `broken tests` (they do not compile here, import a
    package that is not installed, or there are none).
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        rules: Rules = "strict",
        all_or_nothing: bool = False,
        stop_early: bool = False,
        compare_tokens: bool = False,
        bare_programs: bool = False,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        workers: int | None = None,
    ) -> None:
        """Set the rules and the limits.

        Args:
            sandbox: Where programs run. The caller closes it.
            rules: What counts as the expected output.
            all_or_nothing: Score 0 unless all tests pass.
            stop_early: Run no test after the first that failed. Tests not run count as failed.
            compare_tokens: Compare what is printed word by word: white space and line breaks do not count.
            bare_programs: Take a response without a code block for a program.
            limits: Of one run of a program, or of one call (see `Grading`).
            workers: Programs graded at a time; by default the cores. More would spend each other's time limit.
        """
        self._sandbox = sandbox
        self._extract = extract_like_authors if rules == "authors" else partial(extract_program, bare=bare_programs)
        self._comparison = _COMPARISONS[rules]
        if compare_tokens:
            self._comparison = replace(self._comparison, output=compare.same_tokens)
        self._all_or_nothing = all_or_nothing
        self._stop_early = stop_early
        self._limits = limits
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        self._turn = threading.BoundedSemaphore(workers or cores)

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the verdict on one response to `problem`.

        Raises:
            DataError: the problem has no tests.
        """
        if problem.tests is None:
            raise DataError(
                f"problem {problem.id!r} is of kind {problem.kind!r} but has no tests; a program is judged by tests. "
                "Give it tests in the data, or correct its kind."
            )
        return self.judge(response, problem.tests)

    def judge(self, response: str, tests: CodeTests) -> Verdict:
        """Return the verdict on a response, given the tests alone. A lost sandbox is retried once."""
        program = self._extract(response)
        if program is None:
            return Verdict.wrong("no answer", layer="extraction")
        if len(program) > MAX_PROGRAM:
            return Verdict.wrong("too long", program[:MAX_PROGRAM], layer="limits")
        try:
            try:
                outcomes = self._run(program, tests)
            except SandboxLost:
                outcomes = self._run(program, tests)
        except SandboxLost:
            return Verdict.undecided("worker lost", program, layer="tests")
        except BrokenTests:
            return Verdict.undecided("broken tests", program, layer="tests")
        return self._verdict(outcomes, program)

    def _run(self, program: str, tests: CodeTests) -> list[str]:
        with self._turn:
            return Grading(
                program=program,
                tests=tests,
                sandbox=self._sandbox,
                limits=self._limits,
                comparison=self._comparison,
                stop_early=self._stop_early,
            ).outcomes()

    def _verdict(self, outcomes: Sequence[str], program: str) -> Verdict:
        if not outcomes:
            return Verdict.undecided("broken tests", program, layer="tests")
        failures = [outcome for outcome in outcomes if outcome != PASSED]
        if not failures:
            return Verdict.right("passed", program, layer="tests")
        score = 0.0 if self._all_or_nothing else 1.0 - len(failures) / len(outcomes)
        return Verdict(correct=False, score=score, reason=failures[0], answer=program, layer="tests")


def check_tests_run(problem: Problem) -> None:
    """Raise `DataError` if the text of a problem's tests shows that they cannot run, or that they test nothing."""
    tests = problem.tests
    if tests is not None and tests.kind in ("assert_list", "check", "script"):
        try:
            check_tests(tests.kind, tests.asserts if tests.kind == "assert_list" else [tests.test])
        except BrokenError as error:
            raise DataError(f"broken tests: {error}") from error


def grade(response: str, tests: CodeTests, *, rules: Rules = "strict") -> Verdict:
    """Return the verdict on one response, by a verifier and a sandbox shared by the whole program.

    Raises:
        SandboxUnavailable: no isolation works on this machine.
    """
    return _shared(rules).judge(response, tests)


def grade_many(items: Sequence[tuple[str, CodeTests]], *, rules: Rules = "strict") -> list[Verdict]:
    """Return the verdicts on (response, tests) pairs, in their order. Several are graded at once."""
    verifier = _shared(rules)
    return fan_out(lambda item: verifier.judge(*item), items)


@cache
def _shared(rules: Rules) -> CodeVerifier:
    return CodeVerifier(_shared_sandbox(), rules=rules)


@cache
def _shared_sandbox() -> Sandbox:
    return open_sandbox("auto")
