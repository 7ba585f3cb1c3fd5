"""Trajectories made of sampled tokens."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fakes import make_prompt
from priml.errors import RunError
from priml.rollout.base import SamplingSpec
from priml.rollout.trajectories import SampledTokens, SampleNumbers, TrajectoryBuilder, draw_key, eos_ids
from priml.types import Prompt, Trajectory

TOKENIZER = SimpleNamespace(eos_token_id=7, decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))


def sampled(prompt: int, sample: int, *ids: int) -> SampledTokens:
    return SampledTokens(prompt, sample, np.array(ids, np.int32), np.full(len(ids), -1.0, np.float32))


def test_responses_come_in_any_order_and_are_put_in_theirs():
    prompts = [make_prompt("a"), make_prompt("b")]
    arrived: list[tuple[Prompt, Trajectory]] = []
    tokens = [sampled(1, 5, 65, 7), sampled(0, 1, 66), sampled(1, 4, 67), sampled(0, 0, 68, 7)]
    builder = TrajectoryBuilder(SimpleNamespace(), TOKENIZER)
    groups = builder.groups(prompts, tokens, 3, lambda *pair: arrived.append(pair))
    assert [group.prompt for group in groups] == prompts
    assert [[c.sample for c in group.trajectories] for group in groups] == [[0, 1], [4, 5]]
    assert [c.finish_reason for group in groups for c in group.trajectories] == ["stop", "length", "length", "stop"]
    assert {c.weight_version for group in groups for c in group.trajectories} == {3}
    assert [(p.problem.id, c.sample) for p, c in arrived] == [("b", 5), ("a", 1), ("b", 4), ("a", 0)]
    assert arrived[1][1] is groups[0].trajectories[1]
    assert arrived[1][1].text == "B"


@pytest.mark.parametrize(("configured", "expected"), [(None, [7]), (3, [3, 7]), ([9, 7], [7, 9])])
def test_a_response_ends_with_the_tokenizers_eos_or_the_models(configured: Any, expected: list[int]):
    module = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
    assert eos_ids(module, SimpleNamespace(eos_token_id=7)) == expected


# --- draws -------------------------------------------------------------------------------------------------------


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


def test_what_was_drawn_from_logits_that_are_not_finite_is_no_response():
    broken = SampledTokens(0, 0, np.array([65, 66], np.int32), np.array([-1.0, np.nan], np.float32))
    with pytest.raises(RunError, match=r"logits that are not finite .* after 3 updates, at token 2 .* problem 'a'"):
        TrajectoryBuilder(SimpleNamespace(), TOKENIZER).groups([make_prompt("a")], [broken], 3, None)
