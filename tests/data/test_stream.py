import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from priml.data.stream import ProblemStream
from priml.errors import DataError
from priml.types import Problem, Prompt


def prompts(count: int, *, suffix: str = "") -> list[Prompt]:
    return [Prompt(Problem(f"p{i}", f"{i}?", str(i)), f"{i}?{suffix}", (i,)) for i in range(count)]


def ids(taken: list[Prompt]) -> list[str]:
    return [prompt.problem.id for prompt in taken]


def epochs(stream: ProblemStream, count: int) -> list[list[str]]:
    return [ids(stream.take(len(stream))) for _ in range(count)]


@given(count=st.integers(1, 40), seed=st.integers(-(2**63), 2**64))
def test_every_epoch_is_a_permutation(count, seed):
    for epoch in epochs(ProblemStream(prompts(count), seed=seed), 3):
        assert sorted(epoch) == sorted(ids(prompts(count)))


def test_epochs_and_seeds_differ_and_equal_seeds_agree():
    stream = prompts(50)
    first, second = epochs(ProblemStream(stream, seed=0), 2)
    assert first != second
    assert epochs(ProblemStream(stream, seed=0), 2) == [first, second]
    assert epochs(ProblemStream(stream, seed=1), 1) != [first]


def test_the_order_never_changes_between_versions():
    assert ids(ProblemStream(prompts(8), seed=7).take(8)) == ["p4", "p1", "p6", "p3", "p2", "p7", "p5", "p0"]


@given(count=st.integers(1, 12), sizes=st.lists(st.integers(0, 30), max_size=8))
def test_prompts_are_served_evenly_however_they_are_taken(count, sizes):
    stream = ProblemStream(prompts(count), seed=3)
    taken = [ids(stream.take(n)) for n in sizes]
    assert [len(part) for part in taken] == sizes
    assert all(len(set(part)) == min(len(part), count) for part in taken)
    # What was held back to keep a take free of repeats is owed; with it, nobody is more than one epoch ahead.
    served = Counter(sum(taken, stream.state()["waiting"]))
    assert max(served.values(), default=0) - min(served[f"p{i}"] for i in range(count)) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_take_over_the_end_of_an_epoch_holds_repeats_back_for_the_next(seed):
    stream = ProblemStream(prompts(5), seed=seed)
    first, second = epochs(ProblemStream(prompts(5), seed=seed), 2)
    assert ids(stream.take(3)) == first[:3]
    assert ids(stream.take(5)) == first[3:] + [problem_id for problem_id in second if problem_id in first[:3]]
    assert ids(stream.take(2)) == [problem_id for problem_id in second if problem_id in first[3:]]


def test_more_prompts_than_there_are_come_in_whole_rounds():
    taken = ids(ProblemStream(prompts(3), seed=0).take(8))
    assert [len(set(taken[i : i + 3])) for i in (0, 3, 6)] == [3, 3, 2]


def test_prompts_put_back_come_first_and_in_order():
    stream = ProblemStream(prompts(10), seed=0)
    undisturbed = ids(ProblemStream(prompts(10), seed=0).take(10))
    taken = stream.take(6)
    stream.put_back(taken[4:])
    stream.put_back(taken[1:2])
    assert ids(stream.take(2)) == undisturbed[4:6]
    assert ids(stream.take(3)) == [undisturbed[1], *undisturbed[6:8]]


takes = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 5)), max_size=8)


def drive(stream: ProblemStream, moves: list[tuple[int, int]]) -> list[list[str]]:
    seen = []
    for n, surplus in moves:
        taken = stream.take(n)
        stream.put_back(taken[max(0, n - surplus) :])
        seen.append(ids(taken))
    return seen


@given(count=st.integers(1, 10), before=takes, after=takes)
def test_a_stream_resumed_from_any_state_goes_on_as_if_never_stopped(count, before, after):
    stream = ProblemStream(prompts(count), seed=5)
    drive(stream, before)
    resumed = ProblemStream(prompts(count), seed=5)
    resumed.load(json.loads(json.dumps(stream.state())))
    assert resumed.state() == stream.state()
    assert drive(resumed, after) == drive(stream, after)


@pytest.mark.parametrize("changed", [prompts(4), prompts(3, suffix=" Box it."), prompts(3)[::-1]])
def test_a_state_of_other_prompts_is_refused(changed):
    state = ProblemStream(prompts(3), seed=0).state()
    with pytest.raises(DataError, match="the prompts have changed since the checkpoint"):
        ProblemStream(changed, seed=0).load(state)


def test_a_state_of_another_seed_is_refused():
    state = ProblemStream(prompts(3), seed=0).state()
    with pytest.raises(DataError, match="has seed 0, this run has 1; set the seed to 0"):
        ProblemStream(prompts(3), seed=1).load(state)


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(DataError, match="no prompts to draw from"):
        ProblemStream([], seed=0)


def test_problems_that_share_an_id_are_refused():
    with pytest.raises(DataError, match="with_unique_ids"):
        ProblemStream([*prompts(2), *prompts(1)], seed=0)
