"""Run a program against its tests: one outcome per test, by the kind of tests.

An outcome is `PASSED` or the reason for failing, one of a small set: `wrong answer`, `exception: NAME` (NAME a builtin
exception), `time limit`, `memory limit`, `output limit`, `crash`, `not run`.
"""

import builtins
import json
import marshal
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import Self

from priml.graders.code import compare
from priml.graders.code.guest_tests import PASSED, WRONG
from priml.graders.code.stand_ins import ANSWER, CALL, GONE
from priml.graders.code.wire import ENTRY, PLAIN, Json, Refused
from priml.sandbox.base import Limits, ProgramEnded, Sandbox, SandboxResult, Session
from priml.types import CodeTests

TIME, MEMORY, CRASH, NOT_RUN = "time limit", "memory limit", "crash", "not run"
MAX_TIME_LIMITS = 3
"""A program that has run into the time limit so often is not started again: its other tests have failed likewise."""
PATIENCE = 10
"""Time for all tests of one response together, as a multiple of the limit for one run or call."""

_TESTS_TIME = 3  # the tests' own limits, as a multiple: they are ours, but what they compare is a stranger's
_REPLY_BYTES = 16 << 20  # between program and tests, unread by us
_TESTS_REPLY_BYTES = 64 << 20
_OUTCOMES = frozenset({PASSED, WRONG, TIME, MEMORY, "output limit", CRASH})
_LAST_LINE = re.compile(r"(\w+)(?::|$)")


class BrokenTests(Exception):
    """The tests themselves cannot run here: they do not compile, need a package that is not installed, or hold values
    that cannot be passed to a program.
    """


@dataclass(frozen=True, slots=True)
class Comparison:
    """What counts as the expected output."""

    output: Callable[[str, str], bool]
    """Of printed text: what was printed, what is expected."""
    value: Callable[[Json, object], bool]
    """Of returned values: what came back, packed; what is expected."""


class _UnloadableError(Exception):
    """Nothing can be tested."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _RaisedError(Exception):
    """The program raised an exception and goes on."""

    def __init__(self, described: Json) -> None:
        name = described[1] if isinstance(described, list) and len(described) > 1 else ""
        self.reason = _exception(name)
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class _Program:
    """The program under test in its sandbox."""

    session: Session
    wall_s: float
    deadline: float

    def load(self, parts: dict[str, str]) -> None:
        """Run the program up to its end, as a module. Raises `_UnloadableError`."""
        try:
            self.request({"load": parts})
        except _RaisedError as raised:
            raise _UnloadableError(raised.reason) from None
        except ProgramEnded as ended:
            raise _UnloadableError(_reason(ended.result)) from None

    def request(self, request: Json) -> Json:
        """Return the reply, whatever it is; None if it is not JSON. Raises `_RaisedError` and `ProgramEnded`."""
        try:
            reply = json.loads(self._ask(json.dumps(request).encode()))
        except (ValueError, RecursionError):
            return None
        if isinstance(reply, dict) and "raised" in reply:
            raise _RaisedError(reply["raised"])
        return reply

    def answer(self, request: bytes) -> bytes:
        """Return the answer for the tests: the program's reply, unread, or why there is none."""
        try:
            return ANSWER + self._ask(request)
        except ProgramEnded as ended:
            return GONE + _reason(ended.result).encode()

    def _ask(self, request: bytes) -> bytes:
        left_s = max(self.deadline - time.monotonic(), 0.01)
        return self.session.ask(request, wall_s=min(self.wall_s, left_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.session.close()


@dataclass(slots=True)
class Grading:
    """One program and its tests.

    For all kinds but `stdin` the program is started once. When a test ends it, it is started again for the other tests.
    `outcomes` may raise `SandboxLost` and `BrokenTests`: neither is the program's fault.
    """

    program: str
    tests: CodeTests
    sandbox: Sandbox
    limits: Limits
    """Of one run of the program, or of one call where it is called."""
    comparison: Comparison
    stop_early: bool
    """Run nothing after the first failure."""
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + PATIENCE * self.limits.wall_s

    def outcomes(self) -> list[str]:
        """Return one per test, in order. For a program that does not load it is one outcome, which stands for all."""
        try:
            match self.tests.kind:
                case "stdin":
                    return self._print_all()
                case "call":
                    return self._call_all()
                case "assert_list" | "check" | "script":
                    return self._run_test_programs()
        except _UnloadableError as error:
            return [error.reason]
        except Refused as error:
            raise BrokenTests(str(error)) from error

    # Standard output

    def _print_all(self) -> list[str]:
        outcomes: list[str] = []
        program = f"{self.tests.setup}\n{self.program}" if self.tests.setup else self.program
        for given, expected in zip(self.tests.inputs, self.tests.outputs, strict=True):
            if self._is_enough(outcomes):
                break
            limits = replace(self.limits, output_bytes=max(self.limits.output_bytes, 2 * len(expected)))
            result = self.sandbox.run(program, stdin=given, limits=limits)
            if result.status != "finished":
                outcomes.append(result.status)
            elif result.exit_code != 0:
                outcomes.append(_uncaught(result.stderr))
            else:
                outcomes.append(PASSED if self.comparison.output(result.stdout, expected) else WRONG)
        return self._filled(outcomes, len(self.tests.inputs))

    # Calls

    def _call_all(self) -> list[str]:
        outcomes: list[str] = []
        total = len(self.tests.inputs)
        expected = len(json.dumps(PLAIN.pack(list(self.tests.outputs))))
        while len(outcomes) < total and not self._is_enough(outcomes):
            with self._start(reply_bytes=2 * expected) as program:
                try:
                    while len(outcomes) < total and not self._is_enough(outcomes):
                        outcomes.append(self._call_one(program, len(outcomes)))
                except ProgramEnded as ended:
                    outcomes.append(_reason(ended.result))
        return self._filled(outcomes, total)

    def _call_one(self, program: _Program, index: int) -> str:
        tests = self.tests
        packed = PLAIN.pack([list(tests.inputs[index]), {}])
        try:
            reply = program.request({"call": ENTRY, "args": packed, "in_place": tests.in_place})
        except _RaisedError as raised:
            return raised.reason
        value = _first_argument(reply) if tests.in_place else reply
        same = compare.same_item if tests.is_wrapped else self.comparison.value
        return PASSED if same(value, tests.outputs[index]) else WRONG

    # Tests that are programs

    def _run_test_programs(self) -> list[str]:
        known: list[str] = []
        while True:
            outcomes, over = self._attempt(skip=len(known))
            total = len(outcomes)
            reached = [*takewhile(lambda outcome: outcome is not None, outcomes[len(known) :])]
            known += [outcome for outcome in reached if outcome is not None]
            if len(known) == total or self._is_enough(known):
                return self._filled(known, total)
            if not reached:  # it ended outside of all tests, where it would end again
                return known + [over or WRONG] * (total - len(known))

    def _attempt(self, skip: int) -> tuple[list[str | None], str | None]:
        """Run the tests from number `skip` on until they end, or the program does.

        Returns:
            The outcome of each test, None for one that did not run, and why the program ended, if it did.
        """
        tests = self.tests
        spec = {
            "kind": tests.kind,
            "setup": tests.setup,
            "stub": self._stub,
            "entry": tests.entry_point or "",
            "programs": tests.asserts if tests.kind == "assert_list" else [tests.test],
            "skip": skip,
            "stop_early": self.stop_early,
        }
        limits = replace(
            self.limits,
            wall_s=_TESTS_TIME * self.limits.wall_s,
            cpu_s=_TESTS_TIME * self.limits.cpu_s,
            output_bytes=max(self.limits.output_bytes, _TESTS_REPLY_BYTES),
        )
        report = json.loads(self._converse(json.dumps(spec), limits))
        if report["broken"] is not None:
            raise BrokenTests(report["broken"])
        return [None if outcome is None else _outcome(outcome) for outcome in report["outcomes"]], report["over"]

    def _converse(self, spec: str, limits: Limits) -> bytes:
        """Carry messages between the tests and the program until the tests report how they ended."""
        with (
            self._start(reply_bytes=_REPLY_BYTES) as program,
            self.sandbox.open(_guest("guest_tests"), limits=limits, upcoming=spec) as tests,
        ):
            try:
                message = tests.ask(spec.encode())
                while message[:1] == CALL:
                    message = tests.ask(program.answer(message[1:]))
            except ProgramEnded as ended:  # the tests died of what they were given
                raise _UnloadableError(WRONG if ended.result.status == "finished" else ended.result.status) from None
        return message[1:]

    # Common

    @property
    def _stub(self) -> str:
        return self.tests.stub if self.tests.kind == "check" else ""

    def _start(self, reply_bytes: int) -> _Program:
        limits = replace(
            self.limits,
            cpu_s=PATIENCE * self.limits.cpu_s,  # of all calls; one of them is bounded by the clock on the wall
            output_bytes=max(self.limits.output_bytes, reply_bytes),
        )
        parts = {"program": self.program, "setup": self.tests.setup, "stub": self._stub}
        session = self.sandbox.open(_guest("guest_program"), limits=limits, upcoming="\n".join(parts.values()))
        program = _Program(session, limits.wall_s, self._deadline)
        try:
            program.load({**parts, "entry": self.tests.entry_point or ""})
        except BaseException:
            session.close()
            raise
        return program

    def _is_enough(self, outcomes: Sequence[str]) -> bool:
        return (
            (self.stop_early and any(outcome != PASSED for outcome in outcomes))
            or outcomes.count(TIME) >= MAX_TIME_LIMITS
            or time.monotonic() > self._deadline
        )

    def _filled(self, outcomes: list[str], total: int) -> list[str]:
        return outcomes + [NOT_RUN if self.stop_early else TIME] * (total - len(outcomes))


def _first_argument(reply: Json) -> Json:
    """Return the first argument after a call, packed like a returned value."""
    match reply:
        case {"arguments": {"value": [[first, *_], _]}}:
            return {"value": first}
    return None


def _reason(result: SandboxResult) -> str:
    """Return why a session ended. Ending by itself, with whatever exit code, is as bad as any crash."""
    return CRASH if result.status == "finished" else result.status


def _outcome(reported: str) -> str:
    """Return a reported outcome as one of ours, because the tests' process has had a stranger's values."""
    kind, colon, name = reported.partition(": ")
    if kind == "exception" and colon:
        return _exception(name)
    return reported if reported in _OUTCOMES else WRONG


def _exception(name: object) -> str:
    kind = vars(builtins).get(name) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return "exception: Exception"
    return MEMORY if kind is MemoryError else f"exception: {kind.__name__}"


def _uncaught(stderr: str) -> str:
    """Return what ended a program with an exit code, by the last line of its traceback."""
    name = _LAST_LINE.match(stderr.rstrip().rpartition("\n")[2])
    return CRASH if name is None or name[1] not in vars(builtins) else _exception(name[1])


_GUESTS = {
    "guest_program": ("wire", "guest_program"),
    "guest_tests": ("wire", "stand_ins", "instrument", "collect", "guest_tests"),
}


@cache
def _guest(name: str) -> str:
    """Return a guest program with what it imports from us, which is not installed inside.

    It goes along compiled, which saves a third of the time of a grading, and as text for an interpreter of another
    version.
    """
    package = "priml.graders.code"
    texts = {f"{package}.{part}": files(package).joinpath(f"{part}.py").read_text() for part in _GUESTS[name]}
    modules = {part: (marshal.dumps(compile(text, part, "exec")), text) for part, text in texts.items()}
    return _BOOT.format(modules=modules, version=sys.version, main=f"{package}.{name}")


_BOOT = """\
import marshal, sys, types
for name, (code, text) in {modules!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(marshal.loads(code) if sys.version == {version!r} else compile(text, name, "exec"), module.__dict__)
sys.modules[{main!r}].main(receive, reply)
"""
