"""Signs that the policy is gaming its process rewards, that the PRM pays noise, or that training ruins the policy. Read
off the metrics of each step.

Every alarm has a definition, a threshold and an action, all in the settings. One that has fired forgets what it has
seen: it can fire again only after its whole number of steps, so a weight is halved at most that often.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from priml.config.alarms import (
    AccuracyAlarm,
    AlarmAction,
    EntropyAlarm,
    LengthAlarm,
    PairAccuracyAlarm,
    ProcessReturnAlarm,
    RepetitionAlarm,
    UnsolvedAlarm,
)
from priml.config.alarms import Alarms as AlarmSettings

_CEILING = 0.95
"""Mean outcome from which on a rising process return and a falling entropy are what success looks like."""
_SURE = 2.0
"""A difference of two means counts as a rise from this many standard errors on."""

COLLAPSE_HINT = (
    "The usual cause is a learning rate that is too high for this model and batch: lower policy.optimizer.lr. A KL "
    "term (loss.kl) holds the policy, too"
)

History = Mapping[str, Sequence[float]]
"""The last values of each metric, oldest first."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One that has just fired."""

    name: str
    action: AlarmAction
    reason: str
    """What was seen and what the bound was, in words."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Greedy accuracy on the held-out problems after a step, with its 95 % interval."""

    step: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        when = f"after step {self.step}" if self.step else "before training"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] {when}"

    def is_below(self, other: HeldOut) -> bool:
        """By more than chance explains."""
        return self.high < other.low


class Alarms:
    """Watches one run. `factor` is what the alarms have left of the process weight."""

    def __init__(self, settings: AlarmSettings) -> None:
        chosen = {name: getattr(settings, name) for name in RULES}
        self._settings: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        self._seen: dict[str, dict[str, list[float]]] = {name: {} for name in self._settings}
        self._first_entropy: float | None = None
        self.factor = 1.0

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """What fires after this step. `halve` has halved `factor` already; to `stop` is for the caller."""
        self._first_entropy = self._first_entropy or metrics.get("policy/entropy")
        fired: list[Alarm] = []
        for name, settings in self._settings.items():
            rule = RULES[name]
            if any(metric not in metrics for metric in rule.needs):
                continue
            seen = self._seen[name]
            for metric in rule.needs:
                seen[metric] = [*seen.get(metric, []), metrics[metric]][-settings.steps :]
            if len(seen[rule.needs[0]]) < settings.steps:
                continue
            reason = rule.judge(settings, seen, self._first_entropy)
            if reason is not None:
                seen.clear()
                fired.append(Alarm(name, settings.action, reason))
        return self._counted(fired)

    def compare(self, best: HeldOut, last: HeldOut) -> list[Alarm]:
        """What fires after a held-out evaluation."""
        settings = self._settings.get("accuracy")
        if settings is None or not last.is_below(best):
            return []
        reason = f"held-out accuracy fell from {best} to {last}, and the 95 % intervals do not overlap. {COLLAPSE_HINT}"
        return self._counted([Alarm("accuracy", settings.action, reason)])

    def _counted(self, fired: list[Alarm]) -> list[Alarm]:
        self.factor *= 0.5 ** sum(alarm.action == "halve" for alarm in fired)
        return fired

    def state(self) -> dict[str, Any]:
        return {"seen": self._seen, "first_entropy": self._first_entropy, "factor": self.factor}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. Alarms that were switched on since start from nothing."""
        self._seen = {name: dict(state["seen"].get(name, {})) for name in self._settings}
        self._first_entropy = state["first_entropy"]
        self.factor = state["factor"]


def _pair_accuracy(settings: PairAccuracyAlarm, seen: History, first_entropy: float | None) -> str | None:
    values = seen["prm/pair_accuracy"]
    if max(values) >= settings.below:
        return None
    return (
        f"the PRM's pair accuracy on fresh responses was below {settings.below:g} for {settings.steps} steps "
        f"(mean {statistics.mean(values):.2f}): it pays noise, and noise has a sign. "
        "Lower policy.optimizer.lr or prm.optimizer.lr, or give the PRM more to learn from: prm.replay, prm.epochs"
    )


def _process_return(settings: ProcessReturnAlarm, seen: History, first_entropy: float | None) -> str | None:
    returns, outcomes = seen["prm/reward_mean"], seen["outcome/mean"]
    if statistics.mean(outcomes) >= _CEILING or _rise(returns) < _SURE or _rise(outcomes) > 0:
        return None
    half = len(returns) // 2
    return (
        f"over {settings.steps} steps the mean process return rose "
        f"({statistics.mean(returns[:half]):.3g} to {statistics.mean(returns[half:]):.3g}) while verified accuracy did "
        f"not ({statistics.mean(outcomes[:half]):.3f} to {statistics.mean(outcomes[half:]):.3f}): "
        "the policy may be gaming the PRM. Lower advantage.process_weight or look at the rollouts"
    )


def _length(settings: LengthAlarm, seen: History, first_entropy: float | None) -> str | None:
    values = seen["prm/length_correlation"]
    same_sign = min(values) > settings.above or max(values) < -settings.above
    if not same_sign:
        return None
    longer = "longer" if values[-1] > 0 else "shorter"
    return (
        f"length and PRM reward were correlated beyond {settings.above:g} for {settings.steps} steps "
        f"(mean {statistics.mean(values):+.2f}): {longer} responses are paid for their length. "
        "Try prm.granularity: step, prm.loss.kind: pairwise, or a lower advantage.process_weight"
    )


def _entropy(settings: EntropyAlarm, seen: History, first_entropy: float | None) -> str | None:
    values = seen["policy/entropy"]
    bound = settings.below * (first_entropy or 0.0)
    if max(values) >= bound or statistics.mean(seen["outcome/mean"]) >= _CEILING:
        return None
    return (
        f"the policy's entropy was below {settings.below:g} of its first value for {settings.steps} steps "
        f"({first_entropy:.3g} to {values[-1]:.3g} nats a token): it hardly explores any more. "
        "Raise loss.clip_high, add an entropy bonus, or lower policy.optimizer.lr"
    )


def _repetition(settings: RepetitionAlarm, seen: History, first_entropy: float | None) -> str | None:
    values = seen["response/repetition"]
    if min(values) <= settings.above:
        return None
    return (
        f"more than {settings.above:.0%} of each response repeated itself for {settings.steps} steps "
        f"(mean {statistics.mean(values):.0%} of 8-grams): look at the rollouts; lower policy.optimizer.lr or "
        "advantage.process_weight"
    )


def _unsolved(settings: UnsolvedAlarm, seen: History, first_entropy: float | None) -> str | None:
    if max(seen["outcome/mean"]) > 0.0:
        return None
    return (
        f"no response was right for {settings.steps} steps: outcomes teach the policy nothing, and a PRM that learns "
        "from right ones (prm.loss.kind: likelihood) nothing new. Begin with easier problems or a better model "
        "(priml sft), or raise sampling.group_size; priml verify shows what the verifier makes of responses"
    )


def _accuracy(settings: AccuracyAlarm, seen: History, first_entropy: float | None) -> str | None:
    values = seen["outcome/mean"]
    half = len(values) // 2
    early, late = statistics.mean(values[:half]), statistics.mean(values[half:])
    if early - late < settings.drop or _rise(values) > -_SURE:
        return None
    return f"accuracy on fresh problems fell from {early:.3f} to {late:.3f} in {settings.steps} steps. {COLLAPSE_HINT}"


def _rise(values: Sequence[float]) -> float:
    """How far the mean of the later half lies above that of the earlier half, in standard errors."""
    half = len(values) // 2
    early, late = values[:half], values[half:]
    error = math.sqrt(statistics.variance(early) / len(early) + statistics.variance(late) / len(late))
    difference = statistics.mean(late) - statistics.mean(early)
    if error == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


@dataclass(frozen=True, slots=True)
class Rule:
    """Which metrics an alarm looks at, and how it judges the last `steps` values of each."""

    needs: tuple[str, ...]
    judge: Callable[[Any, History, float | None], str | None]
    """(its settings, the values, the first entropy of the run) -> the reason to fire, or None."""


RULES: dict[str, Rule] = {
    "process_return": Rule(("prm/reward_mean", "outcome/mean"), _process_return),
    "pair_accuracy": Rule(("prm/pair_accuracy",), _pair_accuracy),
    "length": Rule(("prm/length_correlation",), _length),
    "entropy": Rule(("policy/entropy", "outcome/mean"), _entropy),
    "unsolved": Rule(("outcome/mean",), _unsolved),
    "repetition": Rule(("response/repetition",), _repetition),
    "accuracy": Rule(("outcome/mean",), _accuracy),
}
"""Keyed by their names in the settings."""
