"""Stand-ins: what the tests of a problem see of the program's functions, classes and objects.

The program is in another sandbox. What the tests do with a stand-in is sent there as a message, and plain values come
back (`wire`). So the program never sees its tests, and its objects never meet an assertion.

A stand-in for a function returns plain values. An object that cannot travel becomes an `_Opaque`: it can be passed back
or called, and nothing else. Only a name that the tests themselves write with a capital letter is a class, whose
instances have attributes and methods. Otherwise a function could return an object with a `startswith` that always says
yes.

Instances of such classes compare, hash and calculate as the program says, with each other; with plain values only if
the tests have made the instance themselves. An instance that equals anything, or is both less and greater, decides
nothing.
"""

import builtins
import json
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from priml.graders.code.wire import MODULE, Codec, Json, Refused

CALL = b"?"
"""First byte of what the tests send: a request to the program."""
ANSWER, GONE = b"+", b"-"
"""First byte of what they are sent: the program's answer, or why there is none."""


class ProgramGone(BaseException):
    """The program is gone; so is everything that depends on it."""


class Connection:
    """The way to the program."""

    def __init__(self, receive: Callable[[], bytes], reply: Callable[[bytes], None]) -> None:
        self._receive = receive
        self._reply = reply
        self._stand_ins: dict[int, _Opaque] = {}
        self.classes: dict[str, type] = {}
        self.instance_classes: frozenset[str] = frozenset()
        self.exceptions: dict[str, type[Exception]] = {}
        self.codec = Codec(self.classes, to_handle=self._to_handle, from_handle=self._from_handle)
        self.asked = False
        """Whether anything was asked of the program but what it defines."""
        self.over: str | None = None
        """Why the program is gone; None while it is there."""
        self.raised: BaseException | None = None
        """The last exception that came from the program."""

    def ask(self, request: Json) -> Json:
        """Return the program's reply; raise what the program raised."""
        self.asked |= "names" not in request
        if self.over is None:
            self._reply(CALL + json.dumps(request).encode())
            message = self._receive()
            if message[:1] == ANSWER:
                return self._read(message[1:])
            self.over = message[1:].decode()
        raise ProgramGone

    def _read(self, message: bytes) -> Json:
        try:
            reply = json.loads(message)
        except (ValueError, RecursionError) as error:
            raise Refused("not JSON") from error
        if type(reply) is not dict:
            raise Refused("not an object")
        if "raised" in reply:
            self._raise(reply["raised"])
        return reply

    def _raise(self, described: Json) -> NoReturn:
        try:
            name, base, arguments = described
            kind = self.exceptions.get(name) or getattr(builtins, base)
            # Not those that mean something to the code around the call: they would end a loop of the tests in silence.
            if not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
                kind = RuntimeError
            self.raised = kind(*arguments)
        except (TypeError, ValueError, AttributeError) as error:
            raise Refused("not an exception") from error
        raise self.raised

    def _to_handle(self, value: object) -> Json:
        if isinstance(value, _Opaque):
            return {"handle": value._number}
        raise Refused(f"a {type(value).__name__} cannot be passed to a program")

    def _from_handle(self, packed: Json) -> "_Opaque":
        number, kinds = int(packed["handle"]), tuple(map(str, packed["classes"]))
        if number not in self._stand_ins:
            make = _Instance if self.instance_classes.intersection(kinds) else _Opaque
            self._stand_ins[number] = make(self, number, kinds)
        return self._stand_ins[number]


class Function:
    """Stands for a function, a class or a method of the program."""

    def __init__(self, connection: Connection, target: Json, *, in_place: bool = False) -> None:
        self._connection, self._target, self._in_place = connection, target, in_place
        self.__name__ = str(target)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        packed = self._connection.codec.pack([args, kwargs])
        reply = self._connection.ask({"call": self._target, "args": packed, "in_place": self._in_place})
        if self._in_place:
            new_args, new_kwargs = self._connection.codec.unpack(reply.get("arguments"))
            for old, new in zip([*args, *kwargs.values()], [*new_args, *new_kwargs.values()], strict=True):
                _update_in_place(old, new)
        return self._connection.codec.unpack(reply)

    def in_place(self) -> "Function":
        """Return the same function, but changes to its arguments in the program are made here, too."""
        return type(self)(self._connection, self._target, in_place=True)


class Class(Function):
    """Stands for a class that the tests name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        handle = self._connection.ask({"object": self._target})["handle"]
        return getattr(_Instance(self._connection, handle, ("type",)), name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        made = super().__call__(*args, **kwargs)
        if isinstance(made, _Instance):
            vars(made).update(_is_made=True)
        return made

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, _Opaque) and self._target in value._kinds


class _Opaque:
    """An object of the program that cannot travel. It can be passed back, and is equal to itself alone."""

    _connection: Connection
    _number: int
    _kinds: tuple[str, ...]
    _is_made: bool

    def __init__(self, connection: Connection, number: int, kinds: tuple[str, ...]) -> None:
        # `_Instance` sends assignments away
        vars(self).update(_connection=connection, _number=number, _kinds=kinds, _is_made=False)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Opaque):
            return self is other
        raise Refused(f"an object of class {self._kinds[0]} has no value to compare")

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        raise Refused(f"an object of class {self._kinds[0]} is neither true nor false")

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return Function(self._connection, [self._number])(*args, **kwargs)


def _operator(name: str, *, swapped: bool = False) -> Callable[..., Any]:
    def calculate(self: "_Instance", *others: object) -> Any:
        operands = (*others, self) if swapped else (self, *others)
        return Function(self._connection, {"operator": name})(*operands)

    return calculate


def _comparison(name: str, opposite: str | None) -> Callable[..., Any]:
    def compare(self: "_Instance", other: object) -> bool:
        if not (self._is_made or isinstance(other, _Instance)):
            raise Refused(f"an object of class {self._kinds[0]} has no value to compare")
        answer = _operator(name)(self, other)
        if type(answer) is not bool:
            raise Refused(f"{name} gave no truth value")
        if answer and opposite and _operator(opposite)(self, other):
            raise Refused(f"an object of class {self._kinds[0]} says yes to everything")
        return answer

    return compare


def _special_method(name: str) -> Callable[..., Any]:
    def call(self: _Opaque, *args: object) -> Any:
        return Function(self._connection, [self._number, name])(*args)

    return call


class _Instance(_Opaque):
    """An instance of a class that the tests name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        reply = self._connection.ask({"get": [self._number, name]})
        if reply.get("method") is True:
            return Function(self._connection, [self._number, name])
        return self._connection.codec.unpack(reply)

    def __setattr__(self, name: str, value: object) -> None:
        self._connection.ask({"set": [self._number, name], "args": self._connection.codec.pack(value)})

    def __bool__(self) -> bool:
        return bool(_operator("truth")(self)) if self._is_made else super().__bool__()

    def __hash__(self) -> int:
        return int(_operator("hash")(self))

    def __iter__(self) -> Iterator[Any]:
        return iter(_operator("list")(self))

    __eq__, __ne__ = _comparison("eq", "equals_anything"), _comparison("ne", None)
    __lt__, __gt__ = _comparison("lt", "gt"), _comparison("gt", "lt")
    __le__, __ge__ = _comparison("le", None), _comparison("ge", None)
    __add__, __radd__ = _operator("add"), _operator("add", swapped=True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", swapped=True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", swapped=True)
    __truediv__, __rtruediv__ = _operator("truediv"), _operator("truediv", swapped=True)
    __floordiv__, __mod__, __pow__ = _operator("floordiv"), _operator("mod"), _operator("pow")
    __matmul__, __and__, __or__, __xor__ = _operator("matmul"), _operator("and_"), _operator("or_"), _operator("xor")
    __neg__, __pos__, __abs__, __invert__ = _operator("neg"), _operator("pos"), _operator("abs"), _operator("invert")
    __len__ = _special_method("__len__")
    __getitem__ = _special_method("__getitem__")
    __setitem__ = _special_method("__setitem__")
    __contains__ = _special_method("__contains__")
    __str__ = _special_method("__str__")
    __repr__ = _special_method("__repr__")


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let calls of a stand-in change their arguments; return other functions as they are."""
    return function.in_place() if isinstance(function, Function) else function


def _update_in_place(old: object, new: object) -> None:
    """Change `old` in place into `new`, if it is a value that can change."""
    if type(old) is not type(new) or isinstance(old, _Opaque):
        return
    match old, new:
        case list(), list():
            old[:] = new
        case deque(), deque():
            old.clear()
            old.extend(new)
        case (dict(), dict()) | (set(), set()):
            old.clear()
            old.update(new)
        case _ if type(old).__module__ == MODULE:
            vars(old).clear()
            vars(old).update(vars(new))
