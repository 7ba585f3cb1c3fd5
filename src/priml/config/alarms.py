"""Reward-hacking alarms: what each looks at, when it fires, what it does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from priml.config.base import Settings

AlarmAction = Literal["warn", "halve", "stop"]
Bound = Annotated[float, Field(gt=0.0, lt=1.0)]


class Alarm(Settings):
    """A sign of reward hacking."""

    action: AlarmAction = "warn"
    """`warn`, `halve` the process weight, or `stop` the run with a checkpoint."""
    steps: PositiveInt = 5
    """So many steps in a row."""


class ProcessReturnAlarm(Alarm):
    """Mean process return rises while verified accuracy does not."""

    steps: Annotated[int, Field(ge=6)] = 20
    """The later half of so many steps is compared with the earlier half: the return is up by two standard errors,
    accuracy not at all. Silent while accuracy is 0.95 or more."""


class PairAccuracyAlarm(Alarm):
    """The PRM ranks fresh right responses below wrong ones: its rewards are noise."""

    below: Bound = 0.5
    """Chance is 0.5."""
    steps: PositiveInt = 10
    """So many steps in a row."""


class LengthAlarm(Alarm):
    """The PRM's score of a response follows its length."""

    above: Bound = 0.7
    """Correlation of score and length, of either sign."""
    steps: PositiveInt = 10
    """So many steps in a row."""


class EntropyAlarm(Alarm):
    """The policy has stopped exploring before it has succeeded."""

    below: Bound = 0.1
    """Share of the first step's entropy. Silent while accuracy is 0.95 or more."""


class RepetitionAlarm(Alarm):
    """Responses repeat themselves."""

    above: Bound = 0.3
    """Mean share of a response's 8-grams that occurred before in it."""


class UnsolvedAlarm(Alarm):
    """No response is right: there is nothing to learn from."""


class AccuracyAlarm(Alarm):
    """The policy gets worse at what it is trained for: on fresh problems over some steps, or, whatever their number,
    between two held-out evaluations whose 95 % intervals do not overlap."""

    drop: Bound = 0.1
    """The later half of so many steps lies so far below the earlier half, and by two standard errors."""
    steps: Annotated[int, Field(ge=6)] = 20
    """So many steps are looked at together."""


class Alarms(Settings):
    """Signs of reward hacking and of collapse; null switches one off. Those about the PRM are silent without one."""

    process_return: ProcessReturnAlarm | None = ProcessReturnAlarm()
    """The process return rises, accuracy does not."""
    pair_accuracy: PairAccuracyAlarm | None = PairAccuracyAlarm()
    """The PRM is below chance."""
    length: LengthAlarm | None = LengthAlarm()
    """The PRM pays for length."""
    entropy: EntropyAlarm | None = EntropyAlarm()
    """Exploration has ended."""
    repetition: RepetitionAlarm | None = RepetitionAlarm()
    """Text repeats itself."""
    unsolved: UnsolvedAlarm | None = UnsolvedAlarm()
    """No response is right."""
    accuracy: AccuracyAlarm | None = AccuracyAlarm()
    """Accuracy falls."""


NO_ALARMS = Alarms.model_validate(dict.fromkeys(Alarms.model_fields))
