"""Idle time of a pool."""

import pytest

from priml.distributed.ray.actors import BusyTime


class Hands:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_two_processes_that_worked_a_quarter_of_the_time_each_were_idle_for_three_quarters():
    clock = Hands()
    busy = BusyTime(clock)
    clock.now = 10.0
    busy.add(2.5)
    busy.add(2.5)
    assert busy.idle_share(10.0, processes=2) == pytest.approx(0.75)


def test_work_that_ended_before_the_step_does_not_count_and_all_is_forgotten():
    clock = Hands()
    busy = BusyTime(clock)
    clock.now = 5.0
    busy.add(5.0)
    clock.now = 20.0
    busy.add(1.0)
    assert busy.idle_share(10.0, processes=1) == pytest.approx(0.9)
    assert busy.idle_share(10.0, processes=1) == 1.0


def test_a_share_stays_a_share():
    clock = Hands()
    busy = BusyTime(clock)
    clock.now = 1.0
    busy.add(3.0)
    assert busy.idle_share(1.0, processes=1) == 0.0
