"""YAML files and command-line overrides -> one validated settings object, and back to YAML.

Every complaint names the key's path, what was found, what was needed and, for unknown names, the nearest valid one.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from priml.config.base import Settings
from priml.errors import ConfigError

S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-6` as a string; people mean the number."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_config(schema: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a settings file, apply `dotted.key=value` overrides (later wins) and validate.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is not acceptable.
    """
    tree = _read(path)
    for text in overrides:
        _apply(tree, text)
    return parse_config(schema, tree, where=str(path))


def parse_config(schema: type[S], tree: dict[str, Any], *, where: str) -> S:
    """Validate a settings tree; `where` names its origin in error messages."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(schema, detail) for detail in error.errors(include_url=False)]
        raise ConfigError(f"{where}: " + ("\n  " if len(lines) > 1 else "") + "\n  ".join(lines)) from None


def dump_config(config: Settings) -> str:
    """The resolved settings as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such settings file; give the path of a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        tree: object = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader subclass)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: need a mapping of settings at the top, found {_kind(tree)}")
    return cast(dict[str, Any], tree)


def _apply(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {text!r}: need key=value, e.g. policy.optimizer.lr=1e-6")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.get(parent)
        if not isinstance(child, dict):
            child = {}
            node[parent] = child
        node = cast(dict[str, Any], child)
    try:
        node[last] = yaml.load(value, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def _explain(schema: type[BaseModel], detail: Any) -> str:
    path = [part for part in detail["loc"] if not _is_tag(schema, detail["loc"], part)]
    key = ".".join(str(part) for part in path) or "settings"
    found = detail.get("input")
    message = str(detail["msg"]).removeprefix("Value error, ")
    match detail["type"]:
        case "extra_forbidden":
            names = _names(schema, detail["loc"][:-1])
            near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; valid names: {', '.join(sorted(names))}"
            return f"{key}: unknown key{hint}"
        case "missing":
            return f"{key}: required, but not given"
        case "value_error":
            return message if message.startswith(key) else f"{key}: {message}"
        case "union_tag_not_found":
            return f"{key}: needs a `kind`: one of {detail['ctx'].get('discriminator', '')}".rstrip() + _tags(schema, path)
        case "union_tag_invalid":
            expected = str(detail["ctx"]["expected_tags"]).replace("'", "")
            near = difflib.get_close_matches(str(detail["ctx"]["tag"]), expected.split(", "), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{key}.kind: found {detail['ctx']['tag']!r}, need one of {expected}{hint}"
        case "literal_error":
            expected = str(detail["ctx"]["expected"])
            valid = expected.replace("'", "").replace(" or ", ", ").split(", ")
            near = difflib.get_close_matches(str(found), valid, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{key}: found {found!r}, need {expected}{hint}"
        case _:
            need = message[0].lower() + message[1:]
            return f"{key}: found {found!r} ({_kind(found)}); {need}"


def _tags(schema: type[BaseModel], path: Sequence[Any]) -> str:
    options = [str(m.model_fields["kind"].annotation) for m in _models(_annotation(schema, path)) if "kind" in m.model_fields]
    return " (" + ", ".join(o.removeprefix("typing.Literal[").rstrip("]").strip("'") for o in options) + ")" if options else ""


def _is_tag(schema: type[BaseModel], loc: Sequence[Any], part: Any) -> bool:
    """Pydantic puts union tags and type names into `loc`; keys of our schemas are what the user typed."""
    index = list(loc).index(part)
    if isinstance(part, int) or index == 0:
        return False
    parents = _models_at(schema, loc[:index])
    if any(part in model.model_fields for model in parents):
        return False
    # an unknown key is the last element and must be kept; a tag or type name is never a user's key
    return bool(parents) and any(_tag_of(m) == part for m in parents) or not parents and index > 0 and not _is_mapping(schema, loc[:index])


def _tag_of(model: type[BaseModel]) -> object:
    kind = model.model_fields.get("kind")
    return typing.get_args(kind.annotation)[0] if kind is not None else None


def _is_mapping(schema: type[BaseModel], loc: Sequence[Any]) -> bool:
    return any(typing.get_origin(t) is dict for t in _flatten(_annotation(schema, loc)))


def _names(schema: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    return [name for model in _models_at(schema, loc) for name in model.model_fields]


def _models_at(schema: type[BaseModel], loc: Sequence[Any]) -> list[type[BaseModel]]:
    """The settings classes a path may lead to, following union tags where the path names them."""
    current = [schema]
    for part in loc:
        stepped = [m for model in current if part in model.model_fields for m in _models(model.model_fields[part].annotation)]
        if stepped:
            current = stepped
        elif any(_tag_of(m) == part for m in current):
            current = [m for m in current if _tag_of(m) == part]
        elif not any(part in m.model_fields for m in current) and isinstance(part, str):
            continue  # the key of a mapping: its values have the classes already collected
        else:
            current = []
    return current


def _annotation(schema: type[BaseModel], loc: Sequence[Any]) -> Any:
    parents = _models_at(schema, loc[:-1])
    for model in parents:
        if loc and loc[-1] in model.model_fields:
            return model.model_fields[loc[-1]].annotation
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [t for t in _flatten(annotation) if isinstance(t, type) and issubclass(t, BaseModel)]


def _flatten(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _flatten(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [t for arg in typing.get_args(annotation) for t in _flatten(arg)]
    if origin is dict:
        return [annotation, *_flatten(typing.get_args(annotation)[1])]
    return [annotation]


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", int: "an integer", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
