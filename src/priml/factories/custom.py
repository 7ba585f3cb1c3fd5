"""From users' functions in the settings to the parts of a run. Each is loaded where it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from priml.config.models import CustomPrm as CustomPrmSettings
from priml.config.trackers import CustomTracker
from priml.learners.custom_prm import CustomPrm
from priml.maths.advantages import ESTIMATORS, Estimator
from priml.maths.custom import check_estimator, check_surrogate
from priml.maths.policy_loss import SURROGATES, Surrogate
from priml.plugins import load
from priml.trackers.base import Tracker
from priml.types import Tokenizer


def build_estimator(name: str) -> Estimator:
    """The advantage estimator of this name, or the user's function."""
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    return check_estimator(load(name, setting="advantage.estimator"), name=f"advantage.estimator: {name}")


def build_surrogate(name: str) -> Surrogate:
    """The surrogate of this name, or the user's function."""
    if name in SURROGATES:
        return SURROGATES[name]
    return check_surrogate(load(name, setting="loss.surrogate"), name=f"loss.surrogate: {name}")


def build_custom_prm(settings: CustomPrmSettings, tokenizer: Tokenizer) -> CustomPrm:
    """The user's process reward model."""
    function = load(settings.function, setting="prm.function")
    return CustomPrm(function, tokenizer, name=f"prm.function: {settings.function}")


def build_trackers(settings: Sequence[CustomTracker], folder: Path) -> list[Tracker]:
    """The users' trackers of a run in this folder."""
    return [load(one.function, setting="trackers.function")(folder) for one in settings]
