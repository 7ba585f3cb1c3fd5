"""Python values as JSON: what travels between a program, its tests and us. Nothing is ever pickled or evaluated.

Only values of exactly these types travel: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset,
dict, range, deque, Counter, OrderedDict, defaultdict (as a dict), builtin types themselves (`int`), iterators of the
standard library (their items, as an iterator), scalars of array libraries (as Python numbers), and instances of the
classes that the tests' setup defines, by class name and attributes. An object of another type, even of a subclass of
one of these, stays where it is, and a numbered handle travels in its place. So no `__eq__` of a stranger is called.

This file runs inside sandboxes, too: standard library only.
"""

import builtins
import itertools
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MAX_DEPTH = 100
"""Containers within containers; self-containing ones end here. Linked instances of setup classes do not count."""
MAX_ITEMS = 1_000_000
"""Items taken from an iterator."""

ENTRY = "<entry point>"
"""The target of calls to the entry point."""
MODULE = "solution"
"""Name of the module that a program is, and its tests are: classes of setup look the same in both."""

Json = Any
"""A JSON value from another process: of any shape until it has been checked."""

_SEQUENCES: dict[str, type] = {kind.__name__: kind for kind in (tuple, set, frozenset, deque)}
_MAPPINGS: dict[str, type] = {kind.__name__: kind for kind in (dict, Counter, OrderedDict)}
_EXACT = frozenset(
    {types.NoneType, bool, int, float, complex, str, bytes, list, range, defaultdict}
    | {*_SEQUENCES.values(), *_MAPPINGS.values()}
)
_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)} | {"NoneType": types.NoneType}
_TYPE_NAMES = {kind: name for name, kind in _TYPES.items()}
_ITERATORS = frozenset(
    {types.GeneratorType, map, filter, zip, enumerate, reversed}
    | {type(iter(value)) for value in ([], (), {}, set(), "", "é", b"", range(0), {}.values(), {}.items())}
    | {type(reversed([]))}
    | {kind for kind in vars(itertools).values() if isinstance(kind, type)}
)
_SMALL = 1 << 53


class Refused(Exception):
    """A value that cannot travel, or a message that is not well formed."""


class Codec:
    """Both directions on one side of a conversation."""

    def __init__(
        self, classes: Mapping[str, type], *, to_handle: Callable[[object], Json], from_handle: Callable[[Json], Any]
    ) -> None:
        """`classes` are those that setup defines, by name. They are looked up at each use.

        `to_handle` returns the JSON for an object that does not travel, or raises `Refused`. `from_handle` returns the
        object for such JSON.
        """
        self._classes = classes
        self._to_handle = to_handle
        self._from_handle = from_handle

    def pack(self, value: object) -> Json:
        """Return `value` as JSON. What iterating over it raises is passed on."""
        return _Packer(self._classes, self._to_handle).pack(value)

    def unpack(self, packed: Json) -> Any:
        """Return the value that `pack` was given, as new objects.

        Raises:
            Refused: `packed` cannot have come from `pack`.
        """
        try:
            return _Unpacker(self._classes, self._from_handle).unpack(packed)
        except (TypeError, ValueError, KeyError, IndexError, RecursionError, AttributeError) as error:
            raise Refused(f"not a packed value ({error})") from error


class _Packer:
    def __init__(self, classes: Mapping[str, type], to_handle: Callable[[object], Json]) -> None:
        self._class_names = frozenset(classes)
        self._to_handle = to_handle
        self._instances: list[object] = []  # also keeps them alive, so that their ids stay theirs
        self._numbers: dict[int, int] = {}

    def pack(self, value: object) -> Json:
        packed = self._pack(value, 0)
        attributes: list[Json] = []
        for instance in self._instances:  # grows while it is walked: a linked list takes no recursion
            attributes.append(
                [type(instance).__name__, {name: self._pack(item, 0) for name, item in _attributes(instance).items()}]
            )
        return {"value": packed, "instances": attributes} if attributes else {"value": packed}

    def _pack(self, value: object, depth: int) -> Json:
        kind = type(value)
        if kind not in _EXACT:
            return self._pack_other(value, kind, depth)
        match value:
            case None | bool() | float() | str():
                return value
            case int():
                return value if -_SMALL < value < _SMALL else {"int": hex(value)}
            case _ if depth > MAX_DEPTH:
                raise Refused(f"more than {MAX_DEPTH} containers within each other")
            case list():
                return self._pack_items(value, depth)
            case tuple() | set() | frozenset() | deque():
                return {kind.__name__: self._pack_items(value, depth)}
            case dict():
                items = [[self._pack(key, depth + 1), self._pack(item, depth + 1)] for key, item in value.items()]
                return {"dict" if kind is defaultdict else kind.__name__: items}
            case bytes():
                return {"bytes": value.hex()}
            case complex():
                return {"complex": [value.real, value.imag]}
            case range():
                return {"range": [self._pack(number, depth) for number in (value.start, value.stop, value.step)]}

    def _pack_other(self, value: object, kind: type, depth: int) -> Json:
        if depth > MAX_DEPTH:
            raise Refused(f"more than {MAX_DEPTH} containers within each other")
        if kind is type and isinstance(value, type) and value in _TYPE_NAMES:
            return {"type": _TYPE_NAMES[value]}
        if kind in _ITERATORS and isinstance(value, Iterable):
            items = list(itertools.islice(value, MAX_ITEMS + 1))
            if len(items) > MAX_ITEMS:
                raise Refused(f"an iterator with more than {MAX_ITEMS} items")
            return {"iterator": self._pack_items(items, depth)}
        if kind.__name__ in self._class_names:
            if id(value) not in self._numbers:
                self._numbers[id(value)] = len(self._instances)
                self._instances.append(value)
            return {"instance": self._numbers[id(value)]}
        item = getattr(kind, "item", None)
        if getattr(value, "ndim", None) == 0 and callable(item):  # of an array library
            return self._pack(item(value), depth + 1)
        return self._to_handle(value)

    def _pack_items(self, items: Iterable[object], depth: int) -> list[Json]:
        return [self._pack(item, depth + 1) for item in items]


class _Unpacker:
    def __init__(self, classes: Mapping[str, type], from_handle: Callable[[Json], Any]) -> None:
        self._classes = classes
        self._from_handle = from_handle
        self._instances: list[Any] = []

    def unpack(self, packed: Json) -> Any:
        described = packed.get("instances", [])
        self._instances = [object.__new__(self._classes[name]) for name, _ in described]
        for instance, (_, attributes) in zip(self._instances, described, strict=True):
            for name, item in attributes.items():
                object.__setattr__(instance, name, self._unpack(item))
        return self._unpack(packed["value"])

    def _unpack(self, packed: Json) -> Any:
        if type(packed) is list:
            return [self._unpack(item) for item in packed]
        if type(packed) is not dict:
            return packed
        if "handle" in packed:
            return self._from_handle(packed)
        ((name, content),) = packed.items()
        match name:
            case "tuple" | "set" | "frozenset" | "deque":
                return _SEQUENCES[name](self._items(content))
            case "dict" | "Counter" | "OrderedDict":
                return _MAPPINGS[name]({self._unpack(key): self._unpack(item) for key, item in content})
            case "int":
                return int(content, 16)
            case "bytes":
                return bytes.fromhex(content)
            case "complex":
                return complex(*content)
            case "range":
                return range(*self._items(content))
            case "iterator":
                return iter(list(self._items(content)))
            case "type":
                return _TYPES[content]
            case "instance":
                if content < 0:
                    raise Refused("instances are numbered from 0")
                return self._instances[content]
        raise Refused(f"no kind of value is called {name[:40]!r}")

    def _items(self, packed: Json) -> Iterable[Any]:
        if type(packed) is not list:
            raise Refused("needed a list of items")
        return (self._unpack(item) for item in packed)


def _attributes(instance: object) -> dict[str, Any]:
    if hasattr(instance, "__dict__"):
        return vars(instance)
    names = [name for kind in type(instance).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(instance, name) for name in names if hasattr(instance, name)}


def _refuse(value: object) -> Json:
    raise Refused(f"a {type(value).__name__} of the tests cannot be passed to a program")


PLAIN = Codec({}, to_handle=_refuse, from_handle=_refuse)
"""For values that need no handle."""
