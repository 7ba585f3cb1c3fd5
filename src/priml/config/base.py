"""What every settings file is made of: their base class (frozen, unknown keys refused), and bounded numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(ge=0.001, le=1000.0)]
"""Below, softmax overflows; for the most likely token there is greedy decoding."""
Seed = Annotated[int, Field(ge=0)]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


def _names_a_function(name: str) -> str:
    source, _, function = name.rpartition(":")
    if not source or not function.isidentifier():
        raise ValueError(f"found {name!r}, need the name of a function: 'file.py:name' or 'package.module:name'")
    return name


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"found {str(path)!r}, need a folder whose ~ is known: {error}") from error


RunDir = Annotated[Path, AfterValidator(_expand_home)]
"""The folder of a run. `~` is the user's home."""
Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression."""
CustomFunction = Annotated[str, AfterValidator(_names_a_function)]
"""A user's own function, for `priml.plugins.load`."""


_MOST = 10**9
_LEAST, _LARGEST = 1e-30, 1e35


class Settings(BaseModel):
    """A frozen bundle of settings. Field docstrings are the documentation of the keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _numbers_are_meant(self) -> Self:
        """No count is over a billion, and no other number so near to 0 or so far from it that float32 has it not."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int) and abs(value) > _MOST and name != "seed":
                raise ValueError(f"{name}: found {value:.3g}, need at most {_MOST:.0e}")
            if isinstance(value, float) and value and not _LEAST <= abs(value) <= _LARGEST:
                raise ValueError(f"{name}: found {value:g}, need 0 or a number between {_LEAST:g} and {_LARGEST:g}")
        return self


def fill(settings: Settings, part: str | None = None, **defaults: object) -> None:
    """Give keys that the user has not given another default, which follows from other settings.

    `part`: the keys are those of this part of the settings, which gets replaced: all who gave nothing share one.
    Only for validators of `settings`: then nobody has seen these yet, and frozen values may still be set.
    """
    chosen: Settings = settings if part is None else getattr(settings, part)
    missing = {name: value for name, value in defaults.items() if name not in chosen.model_fields_set}
    values = missing if part is None else {part: chosen.model_copy(update=missing)}
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def as_kind(text: str) -> dict[str, object]:
    """`ce` is short for `{kind: ce}`, and `file.py:name` for a function of the user's own."""
    return {"kind": "custom", "function": text} if ":" in text else {"kind": text}


@dataclass(frozen=True)
class ShortForm:
    """Marks a part that has several kinds and can be given in short. `priml.config.schema.expand` writes it out."""

    kind: str | None = None
    """The kind of a mapping that names none."""
    text: Callable[[str], dict[str, object]] = as_kind
    """Reads a text."""

    def expand(self, given: object) -> object:
        """The mapping that is meant."""
        if isinstance(given, str):
            return self.text(given)
        if self.kind is not None and isinstance(given, dict):
            return {"kind": self.kind, **cast(dict[str, Any], given)}
        return given
