"""Names of the algorithm's interchangeable parts, and what each of them needs.

Settings check against this table before torch is imported. The functions of the same names are in `priml.maths`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EstimatorName = Literal["rloo", "grpo", "dr_grpo", "reinforce", "reinforce_pp", "ppo", "prime_value"]
PresetName = Literal["priml", "paper", "authors", "verl"]
PUBLISHED_PRESETS: frozenset[PresetName] = frozenset({"paper", "authors", "verl"})
"""Presets that reproduce what others published."""
SurrogateName = Literal["ppo", "gspo", "cispo"]
AggregateName = Literal["sequence_mean", "token_mean", "constant_length"]
KlEstimatorName = Literal["k1", "k2", "k3"]
ImportanceLevel = Literal["token", "sequence"]
PrmLossName = Literal["ce", "pairwise", "detached", "likelihood"]


@dataclass(frozen=True, slots=True)
class EstimatorNeeds:
    """What an advantage estimator needs besides outcomes, process rewards and a mask."""

    groups: bool = False
    """It compares the responses to one prompt, so it needs at least two."""
    values: bool = False
    """It reads a critic's values. A critic values outcome and process rewards together, so there is one discount."""
    token_rewards: bool = False
    """It reads the process rewards before each token, and does not discount them."""


ESTIMATOR_NEEDS: dict[str, EstimatorNeeds] = {
    "rloo": EstimatorNeeds(groups=True),
    "grpo": EstimatorNeeds(groups=True),
    "dr_grpo": EstimatorNeeds(groups=True),
    "reinforce": EstimatorNeeds(),
    "reinforce_pp": EstimatorNeeds(),
    "ppo": EstimatorNeeds(values=True),
    "prime_value": EstimatorNeeds(token_rewards=True),
}

NO_DUAL_CLIP: frozenset[SurrogateName] = frozenset({"cispo"})
"""Surrogates without a second bound for tokens with a negative advantage."""

GROUP_PRM_LOSSES: frozenset[PrmLossName] = frozenset({"pairwise", "detached"})
"""PRM losses that compare the responses to one prompt."""
