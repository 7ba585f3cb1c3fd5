"""How far the process reward is trusted: as far as the PRM ranks fresh responses better than chance."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from priml.config.algorithm import Gate
from priml.learners.base import PrmReport


class TrustGate:
    """Factor in [0, 1] of the process weight, from the PRM's ranking of the last steps' responses.

    Each response is scored before the PRM learns from it. Of n groups with right and wrong responses, `a` is the mean
    share of pairs that are ranked right. No number in [0, 1] varies by more than 1/2, so `a - 1 / (2 sqrt n)` is a
    cautious estimate: where that is at chance (1/2) the factor is 0, from `gate.full` on it is 1, and between it grows
    linearly.
    """

    def __init__(self, settings: Gate | None) -> None:
        """None: the factor is always 1, as in the paper."""
        self._settings = settings
        self._seen: deque[tuple[float, float]] = deque(maxlen=settings.steps if settings else 0)

    @property
    def is_on(self) -> bool:
        return self._settings is not None

    def trust(self, report: PrmReport | None) -> float:
        """The factor after this step's report. Without a PRM that is judged, there is nothing to distrust: 1."""
        if self._settings is None or report is None:
            return 1.0
        self._seen.append((report.mixed_groups or 0.0, report.mixed_accuracy or 0.0))
        num_groups = sum(count for count, _ in self._seen)
        if num_groups == 0:
            return 0.0
        accuracy = sum(count * share for count, share in self._seen) / num_groups
        cautious = accuracy - 0.5 / math.sqrt(num_groups)
        return min(max((cautious - 0.5) / (self._settings.full - 0.5), 0.0), 1.0)

    def state(self) -> dict[str, Any]:
        return {"seen": [list(pair) for pair in self._seen]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._seen.clear()
        self._seen.extend((float(count), float(share)) for count, share in state["seen"])
