"""What every settings file is made of: their base class (frozen, unknown keys refused), and bounded numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Seed = Annotated[int, Field(ge=0)]


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


def kind_or(default: str) -> Callable[[Any], str]:
    """A discriminator that reads `kind`. Without one it is `default`: what the part was before it had a second kind."""

    def kind(given: Any) -> str:
        if isinstance(given, dict):
            return str(cast(dict[str, Any], given).get("kind", default))
        return str(getattr(given, "kind", default))

    return kind
