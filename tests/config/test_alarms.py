import pytest
from pydantic import ValidationError

from priml.config.alarms import NO_ALARMS, Alarms


def test_every_alarm_warns_by_default():
    assert {alarm.action for _, alarm in Alarms()} == {"warn"}


def test_no_alarms_switches_every_one_off():
    assert all(alarm is None for _, alarm in NO_ALARMS)
    assert set(NO_ALARMS.model_fields_set) == set(Alarms.model_fields)


@pytest.mark.parametrize(
    "bad",
    [
        {"pair_accuracy": {"action": "shout"}},
        {"pair_accuracy": {"below": 1.5}},
        {"process_return": {"steps": 3}},  # too few for two halves with a spread
    ],
)
def test_a_bound_that_could_never_mean_anything_is_refused(bad):
    with pytest.raises(ValidationError):
        Alarms.model_validate(bad)
