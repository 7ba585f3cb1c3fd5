"""The settings classes read as data: which keys they have, and which parts a key may hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from priml.config.base import Settings, ShortForm


def leaves(schema: type[Settings], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all keys that hold a value, of whatever kind the parts on the way are; some occur twice."""
    for name, field in schema.model_fields.items():
        options = settings_in(field.annotation)
        if not options:
            yield prefix + name
        for option in options:
            yield from leaves(option, f"{prefix}{name}.")


def expand(schema: type[Settings], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with each short form written out. What fits nowhere stays as it is, for pydantic to refuse."""
    fields = schema.model_fields
    return {
        name: _expand(fields[name].annotation, fields[name].metadata, value) if name in fields else value
        for name, value in tree.items()
    }


def _expand(annotation: Any, metadata: Sequence[object], value: Any) -> Any:
    for short in _short_forms(annotation, metadata):
        value = short.expand(value)
    if isinstance(value, list):
        of = content_type(annotation, tuple)
        return [_expand(of, (), part) for part in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    mapping = cast(dict[str, Any], value)
    if of := content_type(annotation, dict):
        return {name: _expand(of, (), part) for name, part in mapping.items()}
    options = settings_in(annotation)
    chosen = [option for option in options if kind_tag(option) == mapping.get("kind")] if options[1:] else options
    return expand(chosen[0], mapping) if chosen else mapping


def _short_forms(annotation: Any, metadata: Sequence[object]) -> Iterator[ShortForm]:
    """The marks of a type; `Union` and `Annotated` may hide them."""
    yield from (mark for mark in metadata if isinstance(mark, ShortForm))
    if get_origin(annotation) is Annotated:
        yield from _short_forms(get_args(annotation)[0], get_args(annotation)[1:])
    elif get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            yield from _short_forms(option, ())


def kind_tag(option: type[Settings]) -> str | None:
    """The tag of a member of a tagged union: the one value its `kind` may have."""
    field = option.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def settings_in(annotation: object) -> list[type[Settings]]:
    """The settings classes a value of this type may be: one, several in a tagged union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if get_origin(annotation) in (dict, tuple):
        return []
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return [option for part in parts if part is not NoneType for option in settings_in(part)]


def content_type(annotation: object, container: type) -> Any:
    """The type of a list's items (`tuple`) or of a mapping's values (`dict`), None for anything else."""
    for option in (annotation, *get_args(annotation)):
        if get_origin(option) is container:
            return get_args(option)[0 if container is tuple else 1]
    return None


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings by dotted keys, as they are typed. An empty mapping stays a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= dotted(cast(dict[str, Any], value), f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
