"""What samplers said comes out of the store as it went in, and only when somebody reads it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import make_prompt, make_trajectory
from priml.distributed.ray.trajectories import StoredChunk, TrajectoryRef, fetch_trajectories, store_trajectories
from priml.training.metrics import repetition
from priml.training.records import annotate
from priml.types import Group, Segment, Trajectory

from .conftest import Store

TEXTS = st.lists(st.lists(st.text(st.characters()), min_size=1, max_size=3), min_size=1, max_size=3)


def every_third(ids: Sequence[int]) -> list[int]:
    return [*range(2, len(ids) - 1, 3), len(ids) - 1]


def annotated(trajectory: Trajectory) -> Trajectory:
    return annotate(trajectory, every_third)


def spoken(texts: Sequence[Sequence[str]], observation: str = "") -> list[Group]:
    """Groups of responses of one token a character, and one more; with an observation, before a second turn."""

    def trajectory(text: str, sample: int) -> Trajectory:
        made = make_trajectory(text + "#", sample=sample, version=7)
        if not observation:
            return made
        seen = Segment(np.array([*map(ord, observation)], np.int32), np.zeros(0, np.float32), None)
        return replace(made, segments=(*made.segments, seen, *make_trajectory("!", version=8).segments))

    return [
        Group(make_prompt(str(i)), tuple(trajectory(text, k) for k, text in enumerate(row)))
        for i, row in enumerate(texts)
    ]


def stored(groups: Sequence[Group], store: Store) -> list[Group]:
    metas, texts, tokens = store_trajectories(groups, annotated)
    chunk = StoredChunk(store.put(texts), store.put(tokens))
    made: Any = chunk.trajectories(metas)
    return [Group(group.prompt, trajectories) for group, trajectories in zip(groups, made, strict=True)]


def assert_equal(found: Trajectory, said: Trajectory) -> None:
    expected = annotated(said)
    assert expected.step_ends is not None
    first, *later = said.turns
    assert expected.step_ends.tolist() == [*every_third(first.tolist()), *(len(first) for _ in later)]
    assert expected.repetition == repetition(said.trained_ids)
    assert len(found.segments) == len(expected.segments)
    names = [field.name for field in fields(Trajectory) if field.name != "segments"]
    pairs = [(getattr(found, name), getattr(expected, name)) for name in names]
    for ours, theirs in zip(found.segments, expected.segments, strict=True):
        pairs += [(getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(Segment)]
    for ours, theirs in pairs:
        if isinstance(theirs, np.ndarray):
            assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())
        else:
            assert ours == theirs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, observation=st.sampled_from(["", "seen"]))
def test_it_comes_out_as_it_went_in_one_by_one_and_all_at_once(
    store: Store, texts: list[list[str]], observation: str
) -> None:
    expected = spoken(texts, observation)
    groups = stored(expected, store)
    refs: Any = [trajectory for group in groups for trajectory in group.trajectories]
    said = [trajectory for group in expected for trajectory in group.trajectories]
    assert [(ref.text, ref.finish_reason) for ref in refs] == [(c.text, c.finish_reason) for c in said]
    for ours, theirs in zip(fetch_trajectories(groups), expected, strict=True):
        assert ours.prompt is theirs.prompt
        for one, other in zip(ours.trajectories, theirs.trajectories, strict=True):
            assert_equal(one, other)
    assert all(type(c) is Trajectory for group in fetch_trajectories(groups) for c in group.trajectories)


def test_nothing_is_fetched_until_it_is_read_and_a_piece_once_for_all_its_responses(store: Store) -> None:
    groups = stored(spoken([["a", "bc"], ["d"]]), store)
    again: Any = pickle.loads(pickle.dumps(groups))
    trajectories = [trajectory for group in again for trajectory in group.trajectories]
    assert [(c.finish_reason, c.meta.sample, c.meta.segments, c.meta.repetition) for c in trajectories] == [
        ("stop", 0, ((2, 7),), 0.0),
        ("stop", 1, ((3, 7),), 0.0),
        ("stop", 0, ((2, 7),), 0.0),
    ]
    assert all(type(trajectory) is TrajectoryRef for trajectory in trajectories)
    assert [trajectory.num_trained for trajectory in trajectories] == [2, 3, 2]
    assert store.got == 0
    assert [c.text for group in fetch_trajectories(again) for c in group.trajectories] == ["a#", "bc#", "d#"]
    assert store.got == 1
    assert trajectories[1].text == "bc#"
    assert store.got == 2


def test_what_was_brought_may_not_be_written_to_and_what_was_never_stored_stays(store: Store) -> None:
    (group,) = stored(spoken([["a"]]), store)
    (found,) = fetch_trajectories([group])
    assert not found.trajectories[0].token_ids.flags.writeable
    local = spoken([["b"]])
    assert fetch_trajectories(local)[0].trajectories == local[0].trajectories
    assert store.got == 1
