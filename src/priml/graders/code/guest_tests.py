"""Runs inside a sandbox of its own: the tests of a problem, with stand-ins for what they test."""

import builtins
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from priml.graders.code.collect import Skipped, run_collected
from priml.graders.code.instrument import (
    COLLECTED,
    IN_PLACE,
    RUNS,
    TEST,
    BrokenError,
    free_names,
    instrument,
    is_class_name,
    parse,
    parse_stub,
    parse_tests,
)
from priml.graders.code.stand_ins import Class, Connection, Function, ProgramGone, in_place
from priml.graders.code.wire import ENTRY, MODULE, Json, Refused

DONE = b"."
"""First byte of the last message from here: how the tests ended."""
PASSED = "passed"
WRONG = "wrong answer"


def main(receive: Callable[[], bytes], reply: Callable[[bytes], None]) -> None:
    """Take the tests from the first message, run them, and report on each."""
    connection = Connection(receive, reply)
    tests = _Tests(json.loads(receive()), connection)
    reply(DONE + json.dumps(tests.run()).encode())
    with suppress(EOFError):
        receive()  # we are ended from outside: a process that ends by itself may lose its last message


class _Stop(BaseException):
    """A test failed, and the first failure was to be the last."""


class _Tests:
    """The tests of one problem, each with its outcome: `PASSED`, a reason, or None while it has not run."""

    def __init__(self, spec: Json, connection: Connection) -> None:
        self._spec = spec
        self._connection = connection
        self._names: dict[str, Any] = {"__name__": MODULE, "__builtins__": builtins}
        self._outcomes: list[str | None] = []

    def run(self) -> Json:
        """Return the outcomes, why the program is gone if it is, and what is broken if the tests are."""
        broken = None
        try:
            self._run()
        except (ProgramGone, _Stop):
            pass
        except BrokenError as error:
            broken = str(error)
        except BaseException as error:  # a border: outside of all tests, so none that follow can run
            self._outcomes = [outcome or self._reason(error) for outcome in self._outcomes]
            if isinstance(error, ImportError) and error is not self._connection.raised:
                broken = f"{type(error).__name__}: {error}"
        if not self._connection.asked and self._outcomes and all(outcome == PASSED for outcome in self._outcomes):
            broken = "the tests ask nothing of the program"
        return {"outcomes": self._outcomes, "over": self._connection.over, "broken": broken}

    def _run(self) -> None:
        spec = self._spec
        entry = spec["entry"]
        setup, stub = parse(spec["setup"], "<setup>"), parse_stub(spec["stub"])
        programs, texts = zip(*map(parse_tests, spec["programs"]), strict=True)
        self._outcomes = [None] * instrument(programs, spec["kind"])
        free = sorted(free_names("\n".join([spec["setup"], *texts]), entry))
        self._connection.instance_classes = frozenset(name for name in {*free, entry} if is_class_name(name))
        kinds = self._connection.ask({"names": free})["names"]
        self._names |= {name: self._stand_in(name, kinds[name]) for name in free if name in kinds}
        self._names |= {RUNS: lambda number: number >= spec["skip"], TEST: self._test, IN_PLACE: in_place}
        self._names[COLLECTED] = run_collected
        defined = {name: self._names[name] for name in kinds}
        exec(compile(setup, "<setup>", "exec"), self._names)
        for name in defined.keys() & {entry.rpartition(".")[2]}:  # `from itertools import *` may have such a name, too
            self._names[name] = defined[name]
        self._connection.classes |= {
            name: kind
            for name, kind in self._names.items()
            if isinstance(kind, type) and kind.__module__ == MODULE and not issubclass(kind, Exception)
        }
        exec(compile(stub, "<stub>", "exec"), self._names)
        candidate = Function(self._connection, ENTRY)
        if entry.isidentifier() and is_class_name(entry):
            candidate = Class(self._connection, entry)
        if spec["kind"] == "check" and entry.isidentifier():
            self._names[entry] = candidate
        for program in programs:
            exec(compile(program, "<tests>", "exec"), self._names)
        if spec["kind"] == "check":
            self._names["check"](candidate)

    def _stand_in(self, name: str, described: Json) -> Any:
        if "exception" in described:
            base = vars(builtins)[described["exception"]]
            if not issubclass(base, Exception):
                raise Refused("not an exception class")
            self._connection.exceptions[name] = type(name, (base,), {})
            return self._connection.exceptions[name]
        if described.get("callable") is True:
            return Class(self._connection, name) if is_class_name(name) else Function(self._connection, name)
        self._connection.asked = True  # a value of the program may be all that is tested
        return self._connection.codec.unpack(described)

    @contextmanager
    def _test(self, number: int) -> Iterator[None]:
        """Run what is inside as test `number` and record how it ended. A second failure never becomes a pass."""
        outcome = PASSED
        try:
            yield
        except Skipped:
            pass
        except BaseException as error:  # a border: whatever the tests raise is their outcome
            outcome = self._reason(error)
        outcome = self._connection.over or outcome  # even if the tests have caught that the program is gone
        if self._outcomes[number] in (None, PASSED):
            self._outcomes[number] = outcome
        if self._connection.over is not None:
            raise ProgramGone
        if outcome != PASSED and self._spec["stop_early"]:
            raise _Stop

    def _reason(self, error: BaseException) -> str:
        if self._connection.over is not None:
            return self._connection.over
        if error is self._connection.raised:
            kind = next(kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
            return f"exception: {kind.__name__}"
        return WRONG
