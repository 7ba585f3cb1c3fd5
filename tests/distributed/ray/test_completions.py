"""What samplers said comes out of the store as it went in, and only when somebody reads it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import make_completion, make_prompt
from priml.distributed.ray.completions import CompletionRef, StoredChunk, fetch_completions, store_completions
from priml.training.metrics import repetition
from priml.training.records import annotate
from priml.types import Completion, Group

from .conftest import Store

TEXTS = st.lists(st.lists(st.text(st.characters()), min_size=1, max_size=3), min_size=1, max_size=3)


def every_third(ids: Sequence[int]) -> list[int]:
    return [*range(2, len(ids) - 1, 3), len(ids) - 1]


def annotated(completion: Completion) -> Completion:
    return annotate(completion, every_third)


def spoken(texts: Sequence[Sequence[str]]) -> list[Group]:
    """Groups of responses of one token a character, and one more."""
    return [
        Group(
            make_prompt(str(i)), tuple(make_completion(text + "#", sample=k, version=7) for k, text in enumerate(row))
        )
        for i, row in enumerate(texts)
    ]


def stored(groups: Sequence[Group], store: Store) -> list[Group]:
    metas, texts, tokens = store_completions(groups, annotated)
    chunk = StoredChunk(store.put(texts), store.put(tokens))
    made: Any = chunk.completions(metas)
    return [Group(group.prompt, completions) for group, completions in zip(groups, made, strict=True)]


def assert_equal(found: Completion, said: Completion) -> None:
    expected = annotated(said)
    assert expected.step_ends is not None
    assert expected.step_ends.tolist() == every_third(said.token_ids.tolist())
    assert expected.repetition == repetition(said.token_ids)
    for field in fields(Completion):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())
        else:
            assert ours == theirs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_it_comes_out_as_it_went_in_one_by_one_and_all_at_once(store: Store, texts: list[list[str]]) -> None:
    expected = spoken(texts)
    groups = stored(expected, store)
    refs: Any = [completion for group in groups for completion in group.completions]
    said = [completion for group in expected for completion in group.completions]
    assert [(ref.text, ref.finish_reason) for ref in refs] == [(c.text, c.finish_reason) for c in said]
    for ours, theirs in zip(fetch_completions(groups), expected, strict=True):
        assert ours.prompt is theirs.prompt
        for one, other in zip(ours.completions, theirs.completions, strict=True):
            assert_equal(one, other)
    assert all(type(c) is Completion for group in fetch_completions(groups) for c in group.completions)


def test_nothing_is_fetched_until_it_is_read_and_a_piece_once_for_all_its_responses(store: Store) -> None:
    groups = stored(spoken([["a", "bc"], ["d"]]), store)
    again: Any = pickle.loads(pickle.dumps(groups))
    completions = [completion for group in again for completion in group.completions]
    assert [(c.finish_reason, c.meta.sample, c.meta.weight_version, c.meta.repetition) for c in completions] == [
        ("stop", 0, 7, 0.0),
        ("stop", 1, 7, 0.0),
        ("stop", 0, 7, 0.0),
    ]
    assert all(type(completion) is CompletionRef for completion in completions)
    assert store.got == 0
    assert [c.text for group in fetch_completions(again) for c in group.completions] == ["a#", "bc#", "d#"]
    assert store.got == 1
    assert completions[1].text == "bc#"
    assert store.got == 2


def test_what_was_brought_may_not_be_written_to_and_what_was_never_stored_stays(store: Store) -> None:
    (group,) = stored(spoken([["a"]]), store)
    (found,) = fetch_completions([group])
    assert not found.completions[0].token_ids.flags.writeable
    local = spoken([["b"]])
    assert fetch_completions(local)[0].completions == local[0].completions
    assert store.got == 1
