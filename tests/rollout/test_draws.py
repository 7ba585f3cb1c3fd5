"""The numbers of responses within a step, and what their random numbers depend on."""

from typing import Any

import pytest

from fakes import make_prompt
from priml.rollout.base import SamplingSpec
from priml.rollout.draws import SampleNumbers, draw_key


def spec(**changes: Any) -> SamplingSpec:
    given = {"group_size": 2, "temperature": 1.0, "max_new_tokens": 4, "seed": 0, "step": 1} | changes
    return SamplingSpec(**given)


def test_a_problem_that_comes_up_again_in_a_step_goes_on_counting_and_begins_anew_in_the_next():
    numbers = SampleNumbers()
    a, b = make_prompt("a"), make_prompt("b")
    assert numbers.take([a, b], spec()) == [range(2), range(2)]
    assert numbers.take([a], spec()) == [range(2, 4)]
    assert numbers.take([b, b], spec()) == [range(2, 4), range(4, 6)]
    assert numbers.take([a], spec(step=2)) == [range(2)]


def test_greedy_responses_draw_nothing():
    numbers = SampleNumbers()
    assert numbers.take([make_prompt()], spec(temperature=0)) == [range(2)]
    assert numbers.take([make_prompt()], spec()) == [range(2)]


@pytest.mark.parametrize("other", [(spec(seed=1), "p", 0), (spec(step=2), "p", 0), (spec(), "q", 0), (spec(), "p", 1)])
def test_seed_step_problem_and_sample_each_make_other_random_numbers(other: Any):
    assert len(draw_key(spec(), "p", 0)) == 16
    assert draw_key(spec(group_size=8), "p", 0) == draw_key(spec(), "p", 0) != draw_key(*other)
