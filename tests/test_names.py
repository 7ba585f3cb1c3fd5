"""The names that settings offer are those that the mathematics has functions for."""

from typing import get_args

import pytest
import torch

from priml.maths.advantages import ESTIMATORS, PRESETS, estimate_advantages
from priml.maths.policy_loss import KL_ESTIMATORS, SURROGATES, aggregate_tokens
from priml.names import (
    ESTIMATOR_NEEDS,
    GROUP_PRM_LOSSES,
    NO_DUAL_CLIP,
    AggregateName,
    EstimatorName,
    KlEstimatorName,
    PresetName,
    PrmLossName,
    SurrogateName,
)


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (EstimatorName, ESTIMATORS),
        (EstimatorName, ESTIMATOR_NEEDS),
        (PresetName, PRESETS),
        (SurrogateName, SURROGATES),
        (KlEstimatorName, KL_ESTIMATORS),
    ],
)
def test_each_name_has_its_entry_and_each_entry_its_name(names: object, table: dict[str, object]):
    assert get_args(names) == tuple(table)


def test_flags_are_about_names_that_exist():
    assert set(get_args(SurrogateName)) >= NO_DUAL_CLIP
    assert set(get_args(PrmLossName)) >= GROUP_PRM_LOSSES


@pytest.mark.parametrize("name", get_args(AggregateName))
def test_each_aggregate_makes_one_number(name: AggregateName):
    mask_BT = torch.ones(2, 3, dtype=torch.bool)
    assert aggregate_tokens(torch.ones(2, 3), mask_BT, name, denominator=6.0).shape == ()


@pytest.mark.parametrize("name", [name for name, needs in ESTIMATOR_NEEDS.items() if not needs.values])
def test_an_estimator_refuses_a_group_of_one_exactly_when_its_entry_says_so(name: EstimatorName):
    ones_B, mask_BT = torch.ones(2), torch.ones(2, 3, dtype=torch.bool)

    def estimate() -> None:
        estimate_advantages(ones_B, torch.rand(2, 3), mask_BT, torch.arange(2), estimator=name, preset="authors")

    if ESTIMATOR_NEEDS[name].groups:
        with pytest.raises(ValueError, match="has 1 response"):
            estimate()
    else:
        estimate()


def test_an_estimator_whose_entry_says_values_refuses_to_do_without():
    ones_B, mask_BT = torch.ones(2), torch.ones(2, 3, dtype=torch.bool)
    for name, needs in ESTIMATOR_NEEDS.items():
        if needs.values:
            with pytest.raises(ValueError, match="needs a critic's values"):
                estimate_advantages(ones_B, torch.rand(2, 3), mask_BT, torch.zeros(2), estimator=name, preset="paper")
