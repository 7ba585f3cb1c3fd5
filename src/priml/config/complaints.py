"""What is wrong with settings, in a line per key: what was found, what is needed, and what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, cast, get_args

from pydantic_core import ErrorDetails

from priml.config.base import Settings
from priml.config.peers import translate
from priml.config.schema import content_type, kind_tag, leaves, settings_in


class _Place(NamedTuple):
    """Where a complaint belongs."""

    key: str
    """The key as the user typed it."""
    valid: Sequence[str]
    """The names, or kinds, that may be there."""
    owner: str
    """The key that a choice of types belongs to."""
    is_optional: bool = False
    """Whether null may stand there."""
    kinds: Sequence[str] = ()
    """For an unknown key: the other kinds of this part that have it."""


def complaints(schema: type[Settings], details: Sequence[ErrorDetails]) -> list[str]:
    """One line per key. Where a value may be of several types, pydantic complains once for each of them."""
    by_key: dict[str, list[tuple[ErrorDetails, _Place]]] = {}
    for detail in details:
        place = _locate(schema, detail)
        by_key.setdefault(place.owner, []).append((detail, place))
    lines: list[str] = []
    for same in by_key.values():
        # The type that fitted best: a list, but for one item.
        deepest = max(len(detail["loc"]) for detail, _ in same)
        chosen = [entry for entry in same if len(entry[0]["loc"]) == deepest]
        detail, place = chosen[0]
        if detail["type"] == "extra_forbidden":
            lines.append(_unknown(schema, place, detail["input"]))
        else:
            lines.append(_complaint(detail, place, [_need(other) for other, _ in chosen]))
    return lines


def _unknown(schema: type[Settings], place: _Place, value: object) -> str:
    """A key that is none, and what was meant: by another program's name, at another place, by a near name."""
    if meanings := [meaning for path in _paths(place.key, value) if (meaning := translate(path))]:
        more = f"; and {len(meanings) - _MEANINGS} more" if len(meanings) > _MEANINGS else ""
        return f"{place.key}: unknown key; {'; '.join(meanings[:_MEANINGS])}{more}"
    parent, _, name = place.key.rpartition(".")
    if place.kinds:
        kinds = " or ".join(f"{parent}.kind={kind}" for kind in place.kinds)
        return f"{place.key}: not a key of this kind; it is one with {kinds}"
    elsewhere = sorted({leaf for leaf in leaves(schema) if leaf.rpartition(".")[2] == name})
    if near := _nearest(name, place.valid, cutoff=0.8):
        return f"{place.key}: unknown key{near}"
    nearby = [leaf for leaf in elsewhere if parent and leaf.startswith(f"{parent}.")] or elsewhere
    if nearby and len(nearby) <= _MEANINGS:
        return f"{place.key}: unknown key; did you mean {' or '.join(nearby)}?"
    names = f"; valid names: {', '.join(sorted(place.valid))}"
    return f"{place.key}: unknown key{_nearest(name, place.valid) or names}"


_MEANINGS = 4
"""What one complaint offers at most."""


def _paths(key: str, value: object) -> Iterator[str]:
    """The dotted paths of a value and of all that a mapping holds."""
    if isinstance(value, Mapping) and value:
        for name, part in cast(Mapping[str, object], value).items():
            yield from _paths(f"{key}.{name}", part)
    else:
        yield key


def _complaint(detail: ErrorDetails, place: _Place, needs: Sequence[str]) -> str:
    key, valid = place.key, place.valid
    found, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing" if key.rpartition(".")[2].isdigit():
            return f"{key.rpartition('.')[0]}: found {show(found)}, need {len(found) + 1} items or more"
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
            return f"{key}: found {show(found)}, need {' or '.join(needs)}{_nearest(found, options)}"
        case "too_short":
            return f"{key}: found {show(found)}, need at least {context['min_length']} in it"
        case _:
            off = "; write null to switch it off" if place.is_optional and str(found).lower() in _MEAN_OFF else ""
            return f"{key}: found {show(found)}, need {' or '.join(needs)}{off}"


_MEAN_OFF = ("false", "none", "no", "off")


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


def _locate(schema: type[Settings], detail: ErrorDetails) -> _Place:
    """Find the place in the settings.

    Pydantic's `loc` holds more than keys: the tags of tagged unions and the names of the types it tried.
    """
    annotation: Any = schema
    keys: list[str] = []
    is_optional, siblings = False, list[type[Settings]]()
    owner: str | None = None
    for part in detail["loc"]:
        options = settings_in(annotation)
        fields = {name: field.annotation for option in options for name, field in option.model_fields.items()}
        if values := content_type(annotation, dict):
            keys.append(str(part))
            annotation = values
        elif options[1:] and (tagged := [option for option in options if kind_tag(option) == part]):
            annotation, siblings = tagged[0], options
        elif isinstance(part, int):
            keys.append(str(part))
            annotation = content_type(annotation, tuple)
        elif part in fields:
            keys.append(part)
            annotation, siblings = fields[part], []
            is_optional = NoneType in get_args(annotation)
        elif detail["type"] == "extra_forbidden":
            key = ".".join([*keys, str(part)])
            having = [kind for option in siblings if part in option.model_fields and (kind := kind_tag(option))]
            return _Place(key, list(fields), key, kinds=having)
        else:  # the name of a type
            owner = ".".join(keys) if owner is None else owner
    key = ".".join(keys)
    kinds = [kind for option in settings_in(annotation) if (kind := kind_tag(option))]
    return _Place(key, kinds, key if owner is None else owner, is_optional)


_WORDS_OF_0_1 = {
    "apart": "'separate'",
    "namespaces": "'bubblewrap' or 'gvisor'",
    "drop_truncated": "overlong: {kind: drop}",
}


def _nearest(found: object, valid: Sequence[str], cutoff: float = 0.5) -> str:
    if word := _WORDS_OF_0_1.get(str(found)):
        return f"; since priml 0.1 this is {word}"
    near = difflib.get_close_matches(str(found), valid, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def show(value: object) -> str:
    """A value and its kind, for people: `'3' (text)`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{cut(value)} ({_KINDS.get(type(value).__name__, 'unknown')})"


def cut(value: object) -> str:
    """A value in at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


_KINDS = {"dict": "a mapping", "list": "a list", "str": "text", "int": "an integer", "float": "a number"}
