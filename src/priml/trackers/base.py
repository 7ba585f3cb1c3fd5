"""Where numbers go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """A sink for the metrics of a run."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics: flat, slash-separated, `step` included; nothing that is NaN."""
        ...

    def close(self) -> None: ...
