"""What every settings file is made of: their base class (frozen, unknown keys refused), and bounded numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
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


def kind_or(default: str) -> Callable[[object], str]:
    """A discriminator that reads `kind`. Without one it is `default`: what the part was before it had a second kind."""

    def kind(given: object) -> str:
        if isinstance(given, dict):
            return str(cast(dict[str, Any], given).get("kind", default))
        return str(getattr(given, "kind", default))

    return kind
