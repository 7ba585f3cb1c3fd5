"""YAML files and command-line overrides -> one validated settings object, and back to YAML.

Every complaint names the key's path, what was found, what was needed and, for unknown names, the nearest valid one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from priml.config.base import Settings
from priml.config.complaints import complaints, cut, show
from priml.config.schema import expand
from priml.errors import ConfigError

S = TypeVar("S", bound=Settings)


def load_config(schema: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """Read a settings file, apply `dotted.key=value` overrides (later wins) and validate.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is not acceptable.
    """
    return parse_overrides(schema, _read(path), overrides, where=str(path))


def parse_overrides(schema: type[S], tree: dict[str, Any], overrides: Sequence[str], *, where: str) -> S:
    """Apply `dotted.key=value` overrides to a settings tree, in place, and validate it. Errors as in `load_config`."""
    for text in overrides:
        _apply(tree, text)
    return parse_config(schema, tree, where=where)


def parse_config(schema: type[S], tree: dict[str, Any], *, where: str) -> S:
    """Validate a settings tree; `where` names its origin in error messages.

    Raises:
        ConfigError: a key or value is not acceptable; all complaints at once, one per line.
    """
    try:
        # By way of JSON, where strict means what people expect of a file: a list is a tuple and text is a path, but
        # "3" is no integer and `true` is not 1. Dates, the one thing YAML has and JSON has not, are text.
        return schema.model_validate_json(json.dumps(expand(schema, tree), default=str), strict=True)
    except ValidationError as error:
        found = complaints(schema, error.errors(include_url=False))
        if len(found) > _SHOWN:
            found[_SHOWN:] = [f"and {len(found) - _SHOWN} more"]
        raise ConfigError("\n  ".join([f"{where}:", *found]) if found[1:] else f"{where}: {found[0]}") from None


def dump_config(config: Settings) -> str:
    """The resolved settings as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_SHOWN = 10
"""Complaints in one message."""


# --- reading -----------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-6` is a number, and a key given twice is a mistake."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Stop at once where it is nested too deeply: the time to read on grows with the square of the depth."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    problem = f"{key.value!r} was given already in line {lines[key.value]}; keep one of the two"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
            raise ConfigError(f"{path}: found no regular file; give the path of a YAML file")
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: cannot be read ({reason}); give the path of a YAML file") from None
    tree = _parse(text, origin=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {show(tree)}, need a mapping of settings at the top")
    return cast(dict[str, Any], tree)


def _apply(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"override {cut(text)}: need key=value, e.g. policy.optimizer.lr=1e-6")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = _parse(value, origin=f"override {cut(text)}")


def _parse(text: str, *, origin: str) -> object:
    if len(text) > _LONGEST:
        raise ConfigError(f"{origin}: found more than {_LONGEST:,} characters, need a file of settings; is this one?")
    try:
        tree = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{origin}: not valid YAML: {line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # characters that no YAML file may hold
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # `!!int abc`, the date 2001-99-99, 5,000 digits
        raise ConfigError(f"{origin}: found a value that its YAML type cannot hold ({error})") from None
    except RecursionError:
        raise ConfigError(f"{origin}: found values nested too deeply, need at most {_DEEPEST} levels") from None
    _check_tree(tree, origin)
    return tree


_DEEPEST, _MOST, _LONGEST = 50, 10_000, 2**18
"""Levels, values and characters of a settings file. An alias counts each time it is used: a few lines can mean
billions."""


def _check_tree(tree: object, origin: str) -> None:
    """Refuse what is no settings: too many values, too deep (an alias inside itself has no end), or of other types."""
    count, left = 0, [(tree, "", 0)]
    while left:
        value, key, depth = left.pop()
        count += 1
        if depth > _DEEPEST:
            raise ConfigError(
                f"{origin}: {key[:60]}...: found values nested too deeply, need at most {_DEEPEST} levels"
            )
        if count > _MOST:
            raise ConfigError(
                f"{origin}: found more than {_MOST:,} values, need fewer; are there aliases (*name) in it?"
            )
        if isinstance(value, dict):
            for name, part in cast(dict[object, object], value).items():
                if not isinstance(name, str) or not _is_text(name):
                    raise ConfigError(f"{origin}: {key or 'top'}: found the key {show(name)}, need text as keys")
                left.append((part, f"{key}.{name}" if key else name, depth + 1))
        elif isinstance(value, list):
            left += [(part, f"{key}.{i}", depth + 1) for i, part in enumerate(cast(list[object], value))]
        elif isinstance(value, str) and not _is_text(value):
            raise ConfigError(
                f"{origin}: {key or 'top'}: found {show(value)}, need text without half characters or NUL"
            )
        elif value is not None and not isinstance(value, str | int | float | date):
            raise ConfigError(
                f"{origin}: {key or 'top'}: found {show(value)}, need text, a number, true, false, null or a list"
            )


def _is_text(value: str) -> bool:
    """Can be written as UTF-8 and used in a path."""
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)
