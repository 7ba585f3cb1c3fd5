"""The settings as a page (docs/configuration.md) and as a list, both read off the schemas themselves.

`python -m priml.config.document docs/configuration.md` writes the page.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import JsonValue
from pydantic.fields import FieldInfo

from priml.config.base import Settings
from priml.config.eval import EvalConfig
from priml.config.prepare import DataPrepareConfig
from priml.config.prm import PrmEvaluateConfig, PrmRankConfig, PrmScoreConfig, PrmTrainConfig
from priml.config.schema import content_type, kind_tag, settings_in
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.config.verify import VerifyConfig

COMMANDS: dict[str, type[Settings]] = {
    "train": TrainConfig,
    "sft": SftConfig,
    "eval": EvalConfig,
    "prm train": PrmTrainConfig,
    "prm score": PrmScoreConfig,
    "prm rank": PrmRankConfig,
    "prm evaluate": PrmEvaluateConfig,
    "data prepare": DataPrepareConfig,
    "verify": VerifyConfig,
}

_OPENING = """\
# Settings

<!-- Written by `python -m priml.config.document docs/configuration.md` from the docstrings of `priml.config`. -->

`priml COMMAND CONFIG.yaml [key=value ...]` reads a YAML file, then dotted overrides, of which the later wins:

    priml train config.yaml policy.optimizer.lr=1e-6 prm.beta=auto filter=null

Unknown keys and unfit values are refused before anything heavy is loaded. The defaults are those of the paper's main
run. Every run writes its settings, defaults included, to `RUN_DIR/config.yaml`, which is itself a settings file.
Relative paths count from where the command is started. A *part* is a mapping of settings with a table of its own; where
a key takes one of several parts, its `kind` says which.
"""


def page() -> str:
    """All settings in Markdown: a table per command, then one per part."""
    sections = [_OPENING]
    parts: dict[str, type[Settings]] = {}
    for command, schema in COMMANDS.items():
        sections.append(f"## `priml {command}`\n\n{_prose(schema)}\n\n{_table(schema)}")
        _collect(schema, parts)
    sections.append("## Parts")
    for name, part in sorted(parts.items()):
        kind = kind_tag(part)
        title = f"### {name}" + (f"\n\n`kind: {kind}`." if kind else "\n")
        sections.append(f"{title}{' ' if kind else chr(10)}{_prose(part)}\n\n{_table(part)}")
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def keys(schema: type[Settings], prefix: str = "") -> Iterator[str]:
    """Every key that may be given, as `path = default`; the members of a tagged union stand in brackets."""
    for name, field in schema.model_fields.items():
        options = settings_in(field.annotation)
        path = f"{prefix}{name}"
        if not options:
            yield f"{path} = {_default(field)}"
        items = settings_in(content_type(field.annotation, tuple))
        for option in items:
            yield from keys(option, f"{path}[][{kind_tag(option)}]." if items[1:] else f"{path}[].")
        for option in options:
            yield from keys(option, f"{path}[{kind_tag(option)}]." if options[1:] else f"{path}.")


def _collect(schema: type[Settings], parts: dict[str, type[Settings]]) -> None:
    for field in schema.model_fields.values():
        types = (field.annotation, content_type(field.annotation, tuple), content_type(field.annotation, dict))
        for option in (option for annotation in types for option in settings_in(annotation)):
            parts[option.__name__] = option
            _collect(option, parts)


def _prose(schema: type[Settings]) -> str:
    return " ".join((schema.__doc__ or "").split())


def _table(schema: type[Settings]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name in sorted(schema.model_fields, key=lambda name: name not in schema.__annotations__):  # inherited ones last
        field = schema.model_fields[name]
        meaning = " ".join((field.description or "Says which part this is.").split())
        default = _default(field) if field.is_required() else f"`{_default(field)}`"
        if isinstance(field.default, Settings):
            default = "as there"
        cells = [f"`{name}`", _type(field.annotation, field.metadata), default, meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _show(field.default)


def _show(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_show, cast(tuple[object, ...], value)))}]"
        case str() if not value or value != value.strip():
            return repr(value)  # an empty text, or line breaks, would not be seen
        case _:
            return str(value)


def _type(annotation: object, metadata: Sequence[object] = ()) -> str:
    """A type in words, with links to the tables of parts."""
    arguments: tuple[Any, ...] = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            return _type(arguments[0], arguments[1:])
        case origin if origin is Literal:
            return ", ".join(f"`{value}`" for value in arguments)
        case origin if origin in (Union, UnionType):
            options: list[str] = [_type(argument) for argument in arguments if argument is not NoneType]
            return " or ".join(options + ["null"] * (NoneType in arguments))
        case origin if origin is dict:
            return f"mapping of names to {_type(arguments[1])}"
        case origin if origin is tuple:
            number = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
            return f"list{number}: {_type(arguments[0])}"
        case _:
            pass
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    words: dict[object, str] = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    words |= {datetime.date: "day such as 2026-11-30", JsonValue: "any value"}
    return " ".join([words[annotation], " and ".join(_bounds(metadata))]).rstrip()


def _bounds(metadata: Sequence[object]) -> Iterator[str]:
    """`> 0`, `>= 0`, `<= 1`: pydantic keeps them in objects of one attribute each, sometimes nested in a field."""
    bounds = [inner for item in metadata for inner in (item.metadata if isinstance(item, FieldInfo) else [item])]
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        yield from (f"{sign} {getattr(bound, name):g}" for bound in bounds if hasattr(bound, name))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
