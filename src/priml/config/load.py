"""YAML files and command-line overrides -> one validated settings object, and back to YAML.

Every complaint names the key's path, what was found, what was needed and, for unknown names, the nearest valid one.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Sequence
from datetime import date
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from priml.config.base import Settings
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
        return schema.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        complaints = _complaints(schema, error.errors(include_url=False))
        if len(complaints) > _SHOWN:
            complaints[_SHOWN:] = [f"and {len(complaints) - _SHOWN} more"]
        raise ConfigError(
            "\n  ".join([f"{where}:", *complaints]) if complaints[1:] else f"{where}: {complaints[0]}"
        ) from None


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
        raise ConfigError(f"{path}: found {_show(tree)}, need a mapping of settings at the top")
    return cast(dict[str, Any], tree)


def _apply(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *parents, last = key.split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"override {_cut(text)}: need key=value, e.g. policy.optimizer.lr=1e-6")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = _parse(value, origin=f"override {_cut(text)}")


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
                    raise ConfigError(f"{origin}: {key or 'top'}: found the key {_show(name)}, need text as keys")
                left.append((part, f"{key}.{name}" if key else name, depth + 1))
        elif isinstance(value, list):
            left += [(part, f"{key}.{i}", depth + 1) for i, part in enumerate(cast(list[object], value))]
        elif isinstance(value, str) and not _is_text(value):
            raise ConfigError(
                f"{origin}: {key or 'top'}: found {_show(value)}, need text without half characters or NUL"
            )
        elif value is not None and not isinstance(value, str | int | float | date):
            raise ConfigError(
                f"{origin}: {key or 'top'}: found {_show(value)}, need text, a number, true, false, null or a list"
            )


def _is_text(value: str) -> bool:
    """Can be written as UTF-8 and used in a path."""
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)


# --- complaining -------------------------------------------------------------------------------------------------


def _complaints(schema: type[Settings], details: Sequence[ErrorDetails]) -> list[str]:
    """One line per key. Where a value may be of several types, pydantic complains once for each of them."""
    by_key: dict[str, list[tuple[ErrorDetails, str, list[str]]]] = {}
    for detail in details:
        key, valid, owner = _locate(schema, detail)
        by_key.setdefault(owner, []).append((detail, key, valid))
    lines: list[str] = []
    for same in by_key.values():
        # The type that fitted best: a list, but for one item.
        deepest = max(len(detail["loc"]) for detail, _, _ in same)
        chosen = [entry for entry in same if len(entry[0]["loc"]) == deepest]
        detail, key, valid = chosen[0]
        lines.append(_complaint(detail, key, valid, [_need(other) for other, _, _ in chosen]))
    return lines


def _complaint(detail: ErrorDetails, key: str, valid: Sequence[str], needs: Sequence[str]) -> str:
    found, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            name = key.rpartition(".")[2]
            return f"{key}: unknown key{_nearest(name, valid) or '; valid names: ' + ', '.join(sorted(valid))}"
        case "missing" if key.rpartition(".")[2].isdigit():
            return f"{key.rpartition('.')[0]}: found {_show(found)}, need {len(found) + 1} items or more"
        case "missing":
            return f"{key}: required, but not given; add it to the file, or {key}=VALUE to the command"
        case "value_error":  # raised by our own validators; those of a whole file name their keys themselves
            message = detail["msg"].removeprefix("Value error, ")
            return f"{key}: {message}" if key else message
        case "union_tag_not_found":
            return f"{key}.kind: required, but not given; need one of {', '.join(valid)}"
        case "union_tag_invalid":
            return (
                f"{key}.kind: found {context['tag']!r}, need one of {', '.join(valid)}{_nearest(context['tag'], valid)}"
            )
        case "literal_error":
            options = re.findall(r"'([^']*)'", context["expected"])
            return f"{key}: found {_show(found)}, need {' or '.join(needs)}{_nearest(found, options)}"
        case "too_short":
            return f"{key}: found {_show(found)}, need at least {context['min_length']} in it"
        case _:
            return f"{key}: found {_show(found)}, need {' or '.join(needs)}"


def _need(detail: ErrorDetails) -> str:
    """What pydantic expected, as a noun."""
    if detail["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return "a mapping of settings"
    if detail["type"] == "too_short":
        return f"a list of at least {detail.get('ctx', {}).get('min_length')}"
    need = detail["msg"].removeprefix("Input should be ").partition(", unable to")[0]
    if need.startswith(("greater than", "less than")):
        return f"a number {need}"
    plain = {
        "a valid integer": "an integer",
        "a valid number": "a number",
        "a valid array": "a list",
        "a valid string": "text",
    }
    return plain.get(need, need)


def _locate(schema: type[Settings], detail: ErrorDetails) -> tuple[str, list[str], str]:
    """The key as the user typed it, the names (or kinds) valid there, and the key that a choice of types belongs to.

    Pydantic's `loc` holds more than keys: the tags of tagged unions and the names of the types it tried.
    """
    annotation: Any = schema
    keys: list[str] = []
    owner: str | None = None
    for part in detail["loc"]:
        options = settings_in(annotation)
        fields = {name: field.annotation for option in options for name, field in option.model_fields.items()}
        if values := content_type(annotation, dict):
            keys.append(str(part))
            annotation = values
        elif options[1:] and (tagged := [option for option in options if kind_tag(option) == part]):
            annotation = tagged[0]
        elif isinstance(part, int):
            keys.append(str(part))
            annotation = content_type(annotation, tuple)
        elif part in fields:
            keys.append(part)
            annotation = fields[part]
        elif detail["type"] == "extra_forbidden":
            return ".".join([*keys, str(part)]), list(fields), ".".join([*keys, str(part)])
        else:  # the name of a type
            owner = ".".join(keys) if owner is None else owner
    key = ".".join(keys)
    kinds = [kind for option in settings_in(annotation) if (kind := kind_tag(option))]
    return key, kinds, key if owner is None else owner


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


_WORDS_OF_0_1 = {
    "apart": "'separate'",
    "namespaces": "'bubblewrap' or 'gvisor'",
    "drop_truncated": "overlong: {kind: drop}",
}


def _nearest(found: object, valid: Sequence[str]) -> str:
    if word := _WORDS_OF_0_1.get(str(found)):
        return f"; since priml 0.1 this is {word}"
    near = difflib.get_close_matches(str(found), valid, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _show(value: object) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{_cut(value)} ({_KINDS.get(type(value).__name__, 'unknown')})"


def _cut(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


_KINDS = {"dict": "a mapping", "list": "a list", "str": "text", "int": "an integer", "float": "a number"}
