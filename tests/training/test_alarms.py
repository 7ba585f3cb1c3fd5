from __future__ import annotations

import json
from typing import Any

import pytest

from priml.config.alarms import Alarms as Settings
from priml.training.alarms import RULES, Alarm, Alarms, HeldOut

HEALTHY = {
    "outcome/mean": 0.4,
    "policy/entropy": 0.5,
    "response/repetition": 0.02,
    "prm/pair_accuracy": 0.8,
    "prm/reward_mean": 1.0,
    "prm/length_correlation": 0.1,
}


def only(name: str, **settings: Any) -> Alarms:
    others: dict[str, Any] = dict.fromkeys(set(RULES) - {name})
    return Alarms(Settings.model_validate(others | {name: settings}))


def fired(alarms: Alarms, steps: list[dict[str, float]]) -> list[list[Alarm]]:
    return [alarms.check(HEALTHY | step) for step in steps]


def test_every_alarm_in_the_settings_has_a_rule():
    assert set(RULES) == set(Settings.model_fields)


def test_a_healthy_run_is_silent():
    alarms = Alarms(Settings())
    assert not any(fired(alarms, [{"outcome/mean": 0.2 + i / 100, "prm/reward_mean": i / 10} for i in range(60)]))
    assert alarms.factor == 1.0


def test_pair_accuracy_fires_after_the_whole_number_of_steps_below_chance_and_not_before():
    alarms = only("pair_accuracy", steps=3)
    below = {"prm/pair_accuracy": 0.45}
    results = fired(alarms, [below, below, {}, below, below, below])
    assert [bool(result) for result in results] == [False] * 5 + [True]
    assert results[-1][0].name == "pair_accuracy"
    assert "below 0.5 for 3 steps (mean 0.45)" in results[-1][0].reason


def test_exactly_chance_does_not_fire():
    assert not any(fired(only("pair_accuracy", steps=2), [{"prm/pair_accuracy": 0.5}] * 6))


def test_one_that_has_fired_waits_for_new_evidence():
    results = fired(only("pair_accuracy", steps=3), [{"prm/pair_accuracy": 0.1}] * 9)
    assert [len(result) for result in results] == [0, 0, 1] * 3


def test_a_run_in_which_nothing_is_ever_right_says_so():
    right, none = {"outcome/mean": 0.01}, {"outcome/mean": 0.0}
    results = fired(only("unsolved", steps=3), [none, none, right, none, none, none])
    assert [bool(result) for result in results] == [False] * 5 + [True]
    assert "no response was right for 3 steps" in results[-1][0].reason


def test_halve_halves_the_factor_each_time():
    alarms = only("pair_accuracy", steps=2, action="halve")
    fired(alarms, [{"prm/pair_accuracy": 0.1}] * 4)
    assert alarms.factor == 0.25


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_other_actions_leave_the_factor_alone(action: str):
    alarms = only("pair_accuracy", steps=2, action=action)
    results = fired(alarms, [{"prm/pair_accuracy": 0.1}] * 2)
    assert results[-1][0].action == action
    assert alarms.factor == 1.0


def test_process_return_fires_when_it_rises_and_accuracy_does_not():
    rising = [{"prm/reward_mean": i / 10 + i % 2, "outcome/mean": 0.4 - i / 1000} for i in range(20)]
    assert fired(only("process_return"), rising)[-1][0].name == "process_return"


@pytest.mark.parametrize(
    "steps",
    [
        [{"prm/reward_mean": i / 10, "outcome/mean": 0.3 + i / 100} for i in range(20)],  # both rise
        [{"prm/reward_mean": float(i % 3), "outcome/mean": 0.4 - i / 100} for i in range(20)],  # noise around a level
        [{"prm/reward_mean": i / 10, "outcome/mean": 0.98} for i in range(20)],  # nothing left to gain
    ],
)
def test_process_return_is_silent_when_accuracy_rises_too_or_the_rise_is_noise_or_all_is_solved(
    steps: list[dict[str, float]],
):
    assert not any(fired(only("process_return"), steps))


@pytest.mark.parametrize(("correlation", "word"), [(0.8, "longer"), (-0.8, "shorter")])
def test_length_fires_for_either_sign(correlation: float, word: str):
    results = fired(only("length", steps=4), [{"prm/length_correlation": correlation}] * 4)
    assert word in results[-1][0].reason


def test_length_is_silent_when_the_sign_changes():
    steps = [{"prm/length_correlation": 0.9 if i % 2 else -0.9} for i in range(8)]
    assert not any(fired(only("length", steps=4), steps))


def test_entropy_is_measured_against_the_first_step():
    falling = [{"policy/entropy": 2.0}] + [{"policy/entropy": 0.19}] * 3
    assert [len(result) for result in fired(only("entropy", steps=3), falling)] == [0, 0, 0, 1]


def test_entropy_may_vanish_once_the_task_is_solved():
    falling = [{"policy/entropy": 2.0}] + [{"policy/entropy": 0.01, "outcome/mean": 0.97}] * 6
    assert not any(fired(only("entropy", steps=3), falling))


def test_repetition_fires_above_its_bound():
    assert fired(only("repetition", steps=2), [{"response/repetition": 0.4}] * 2)[-1][0].name == "repetition"


def test_alarms_about_the_prm_are_silent_without_one():
    alarms = Alarms(Settings())
    metrics = {name: value for name, value in HEALTHY.items() if not name.startswith("prm/")}
    assert not any(alarms.check(metrics) for _ in range(40))


def test_a_restored_watch_fires_when_the_original_would_have():
    original, restored = (only("pair_accuracy", steps=4, action="halve") for _ in range(2))
    fired(original, [{"prm/pair_accuracy": 0.1}] * 6)
    restored.load(json.loads(json.dumps(original.state())))
    assert restored.factor == 0.5
    assert fired(restored, [{"prm/pair_accuracy": 0.1}] * 2) == fired(original, [{"prm/pair_accuracy": 0.1}] * 2)
    assert restored.factor == original.factor == 0.25


def test_accuracy_that_falls_fires_and_noise_does_not():
    fallen = [{"outcome/mean": 0.7 + 0.01 * (i % 3)} for i in range(5)] + [{"outcome/mean": 0.5} for _ in range(5)]
    (results,) = [found for found in fired(only("accuracy", steps=10), fallen) if found]
    assert "fell from 0.708 to 0.500 in 10 steps" in results[0].reason
    assert "policy.optimizer.lr" in results[0].reason
    noisy = [{"outcome/mean": value} for value in (0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.2, 0.1)]
    assert not any(fired(only("accuracy", steps=10), noisy)), "0.16 lower, within two standard errors"
    slightly = [{"outcome/mean": 0.70}] * 5 + [{"outcome/mean": 0.65}] * 5
    assert not any(fired(only("accuracy", steps=10), slightly)), "less than the drop that counts"


def test_held_out_accuracy_fires_where_the_intervals_do_not_overlap():
    start, down, ruined = HeldOut(0, 0.98, 0.93, 0.99), HeldOut(8, 0.9, 0.85, 0.94), HeldOut(16, 0.48, 0.4, 0.56)
    alarms = only("accuracy", action="halve")
    assert alarms.compare(start, down) == []
    (alarm,) = alarms.compare(start, ruined)
    assert "from 0.980 [0.930, 0.990] before training to 0.480 [0.400, 0.560] after step 16" in alarm.reason
    assert alarms.factor == 0.5
    assert Alarms(Settings(accuracy=None)).compare(start, ruined) == []
