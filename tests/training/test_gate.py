"""The trust gate, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from priml.config.algorithm import Gate
from priml.learners.base import PrmReport
from priml.training.gate import TrustGate


def report(groups: int, accuracy: float | None) -> PrmReport:
    return PrmReport(accuracy=0.5, reward_mean=0.0, mixed_groups=groups, mixed_accuracy=accuracy)


def gate(**settings: Any) -> TrustGate:
    return TrustGate(Gate.model_validate(settings))


@pytest.mark.parametrize(
    ("groups", "accuracy", "trust"),
    [
        (100, 0.5, 0.0),  # chance
        (100, 0.3, 0.0),  # below it
        (100, 0.55, 0.0),  # above it by no more than the doubt of 100 groups
        (100, 0.70, 0.5),  # 0.70 - 0.05 is half of the way from 0.5 to 0.8
        (100, 0.85, 1.0),
        (1, 1.0, 0.0),  # one group proves nothing
        (4, 1.0, (0.75 - 0.5) / 0.3),
    ],
)
def test_the_factor_grows_from_chance_to_full(groups: int, accuracy: float, trust: float) -> None:
    assert gate().trust(report(groups, accuracy)) == pytest.approx(trust)


def test_steps_are_pooled_by_their_groups_and_old_ones_leave() -> None:
    looked_at = gate(steps=2)
    assert looked_at.trust(report(30, 0.2)) == 0.0
    pooled = (30 * 0.2 + 70 * 1.0) / 100
    assert looked_at.trust(report(70, 1.0)) == pytest.approx((pooled - 0.05 - 0.5) / 0.3)
    assert looked_at.trust(report(30, 1.0)) == 1.0


def test_steps_without_mixed_groups_say_nothing() -> None:
    looked_at = gate()
    assert looked_at.trust(report(0, None)) == 0.0
    before = looked_at.trust(report(25, 0.75))
    assert before == pytest.approx((0.75 - 0.5 / math.sqrt(25) - 0.5) / 0.3)
    assert looked_at.trust(report(0, None)) == before


def test_without_a_gate_or_a_judged_prm_the_weight_is_whole() -> None:
    assert TrustGate(None).trust(report(100, 0.1)) == 1.0
    assert gate().trust(None) == 1.0


def test_a_resumed_gate_goes_on_where_it_was() -> None:
    first = gate(steps=3)
    for accuracy in (0.6, 0.9, 0.7):
        first.trust(report(40, accuracy))
    again = gate(steps=3)
    again.load(first.state())
    assert again.trust(report(40, 0.8)) == first.trust(report(40, 0.8)) > 0
