"""Runs inside the sandbox of a program: loads it, and calls its functions when asked. It knows no tests.

Everything here belongs to the program as much as to us: it may change this code while it runs. That gains it nothing,
because only values leave this place, to be compared elsewhere with answers that are not here.

Requests, one JSON object each, and their replies:

    {"load": {"setup": TEXT, "stub": TEXT, "program": TEXT, "entry": NAME}}   {"value": null}
    {"names": [NAME, ...]}                                                    {"names": {NAME: KIND, ...}}
    {"call": TARGET, "args": PACKED, "in_place": BOOL}                        {"value": ..., "arguments": PACKED}
    {"get": [HANDLE, NAME]}                                                   {"value": ...} or {"method": true}
    {"set": [HANDLE, NAME], "args": PACKED}                                   {"value": null}
    {"object": NAME}                                                          {"handle": HANDLE, "classes": [NAME, ...]}

Any of them may be answered by {"raised": [CLASS, BUILTIN CLASS, [ARGUMENT, ...]]}.
"""

import builtins
import contextlib
import json
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

from priml.graders.code.wire import ENTRY, MODULE, Codec, Json

RECURSION_LIMIT = 50_000
"""As LiveCodeBench sets it; LeetCode's judge is as patient."""
_PLAIN = (str, int, float, bool, types.NoneType)


def main(receive: Callable[[], bytes], reply: Callable[[bytes], None]) -> None:
    """Answer requests until there are no more."""
    sys.setrecursionlimit(RECURSION_LIMIT)
    program = _Program()
    while True:
        try:
            request = json.loads(receive())
        except EOFError:
            return
        reply(json.dumps(program.answer(request)).encode())


class _Program:
    def __init__(self) -> None:
        self._module = types.ModuleType(MODULE)
        self._names: dict[str, Any] = self._module.__dict__
        sys.modules[MODULE] = self._module  # dataclasses and typing look classes' modules up there
        self._entry = ""
        self._handles: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._setup_classes: dict[str, type] = {}
        self._given: dict[str, Any] = {}
        """What setup has defined."""

    def answer(self, request: Json) -> Json:
        try:
            match request:
                case {"load": parts}:
                    self._load(**parts)
                    return {"value": None}
                case {"names": names}:
                    return {"names": {name: self._describe(self._names[name]) for name in names if self._defines(name)}}
                case {"call": target, "args": packed, "in_place": in_place}:
                    return self._call(target, packed, in_place)
                case {"object": name}:
                    return self._to_handle(self._find(name))
                case {"get": [number, name]}:
                    found = getattr(self._handles[number], name)
                    return {"method": True} if callable(found) else self._codec.pack(found)
                case {"set": [number, name], "args": packed}:
                    setattr(self._handles[number], name, self._codec.unpack(packed))
                    return {"value": None}
            raise ValueError("no such request")
        except BaseException as error:  # a border: whatever a stranger's program raises is reported
            arguments = [argument if type(argument) in _PLAIN else str(argument) for argument in error.args[:5]]
            return {"raised": [type(error).__name__, _builtin_base(type(error)), arguments]}

    @property
    def _codec(self) -> Codec:
        """With the classes of setup; where the program wrote its own in their place, those."""
        now = {name: self._names.get(name) for name in self._setup_classes}
        classes = self._setup_classes | {name: kind for name, kind in now.items() if isinstance(kind, type)}
        return Codec(classes, to_handle=self._to_handle, from_handle=lambda packed: self._handles[packed["handle"]])

    def _load(self, setup: str, stub: str, program: str, entry: str) -> None:
        self._entry = entry
        with contextlib.suppress(NameError):  # a setup that uses the program is for the tests alone
            exec(compile(setup, "<setup>", "exec"), self._names)
        self._given = dict(self._names)
        self._setup_classes = {
            name: kind for name, kind in self._names.items() if isinstance(kind, type) and kind.__module__ == MODULE
        }
        if stub:
            program = self._join(stub, program, entry)
        exec(compile(program, "<solution>", "exec"), self._names)

    def _join(self, stub: str, program: str, entry: str) -> str:
        """Return the stub and the rest of it; or the program alone, after running the stub, if it has all of it."""
        whole = _compiled(program, "<solution>")
        if whole is None or entry not in whole.co_names:
            return stub + program if stub.endswith("\n") else f"{stub}\n{program}"
        code = _compiled(stub, "<stub>") or _compiled(f"{stub}\n    pass", "<stub>")  # it may end with a signature
        if code is not None:
            exec(code, self._names)
        return program

    def _call(self, target: Json, packed: Json, in_place: bool) -> Json:
        args, kwargs = self._codec.unpack(packed)
        reply = self._codec.pack(self._resolve(target)(*args, **kwargs))
        if in_place:
            reply["arguments"] = self._codec.pack([args, kwargs])
        return reply

    def _resolve(self, target: Json) -> Any:
        match target:
            case [int() as number]:
                return self._handles[number]
            case [int() as number, str() as name]:
                return getattr(self._handles[number], name)
            case {"operator": str() as name}:
                return (
                    _equals_anything if name == "equals_anything" else getattr(operator, name, vars(builtins).get(name))
                )
            case str() as name if name == ENTRY:
                return self._resolve_entry()
        return self._find(target)

    def _resolve_entry(self) -> Any:
        owner, dot, method = self._entry.rpartition(".")
        if dot:  # `Solution().method`
            return getattr(self._find(owner.removesuffix("()"))(), method)
        if not self._defines(self._entry) and isinstance(self._names.get("Solution"), type):
            return getattr(self._names["Solution"](), self._entry)
        return self._find(self._entry)

    def _defines(self, name: str) -> bool:
        """Return whether the program has that name from itself, not from setup."""
        return name in self._names and self._names[name] is not self._given.get(name, self)

    def _find(self, name: str) -> Any:
        if name not in self._names:
            raise NameError(f"name {name!r} is not defined")
        return self._names[name]

    def _describe(self, value: object) -> Json:
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": _builtin_base(value)}
        return {"callable": True} if callable(value) else self._codec.pack(value)

    def _to_handle(self, value: object) -> Json:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._handles)
            self._handles.append(value)
        return {"handle": self._numbers[id(value)], "classes": [kind.__name__ for kind in type(value).__mro__]}


def _equals_anything(value: object, _other: object) -> bool:
    with contextlib.suppress(Exception):
        return bool(value == object())
    return False


_OPERATORS = {"hash": hash, "list": list, "equals_anything": _equals_anything}
"""What is no operator of the module of that name."""


def _compiled(text: str, name: str) -> types.CodeType | None:
    try:
        return compile(text, name, "exec")
    except (SyntaxError, ValueError):
        return None


def _builtin_base(kind: type) -> str:
    return next(base.__name__ for base in kind.__mro__ if vars(builtins).get(base.__name__) is base)
