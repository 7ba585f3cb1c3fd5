"""Settings of trackers: where the metrics of a run go, besides its folder and the screen."""

from __future__ import annotations

from typing import Literal

from priml.config.base import CustomFunction, Settings


class CustomTracker(Settings):
    """Your own tracker."""

    kind: Literal["custom"]
    function: CustomFunction
    """`file.py:name` or `package.module:name`: called with the run folder, it returns an object with `log(metrics)` and
    `close()`."""
