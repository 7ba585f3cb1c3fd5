from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import make_group, make_trajectory
from priml.training.collect import FilterBand, GroupPool, StarvedError, collate_groups
from priml.types import Segment

PAPER = FilterBand(low=0.2, high=0.8)


def pool(wanted: int = 2, *, band: FilterBand | None = PAPER, **options: int) -> GroupPool:
    return GroupPool(wanted=wanted, band=band, **{"max_rounds": 3, **options})


def of(right: int, size: int):
    return make_group([1.0] * right + [0.0] * (size - right))


@pytest.mark.parametrize(
    ("size", "kept"),
    [(4, [1, 2, 3]), (5, [1, 2, 3, 4]), (8, [2, 3, 4, 5, 6]), (10, list(range(2, 9))), (16, list(range(4, 13)))],
)
def test_the_papers_band_keeps_these_numbers_of_right_answers(size, kept):
    assert [right for right in range(size + 1) if PAPER.filter_status(of(right, size)) == "kept"] == kept


@pytest.mark.parametrize(("size", "low", "high"), [(4, 1, 3), (8, 2, 6), (16, 4, 12), (10, 1, 3), (6, 1, 5)])
def test_the_band_includes_both_of_its_ends(size, low, high):
    band = FilterBand(low=low / size, high=high / size)
    assert [band.filter_status(of(right, size)) for right in (low - 1, low, high, high + 1)] == [
        "too_hard",
        "kept",
        "kept",
        "too_easy",
    ]


@given(size=st.integers(2, 12), right=st.integers(0, 12))
def test_rounding_in_the_mean_never_drops_a_group_on_the_boundary(size, right):
    right = min(right, size)
    share = sum([0.1] * right * 10) / size  # an unlucky way to write right / size
    assert FilterBand(low=share, high=1.0).filter_status(of(right, size)) == "kept"
    assert FilterBand(low=0.0, high=share).filter_status(of(right, size)) == "kept"


def test_scores_between_right_and_wrong_count_with_their_value():
    assert PAPER.filter_status(make_group([0.5, 0.5])) == "kept"
    assert PAPER.filter_status(make_group([0.1, 0.1])) == "too_hard"


def test_truncated_responses_are_dropped_with_their_group_only_if_asked():
    group = make_group([1.0, 0.0], finish_reasons=["stop", "length"])
    assert PAPER.filter_status(group) == "kept"
    assert FilterBand(low=0.2, high=0.8, drop_truncated=True).filter_status(group) == "truncated"


def test_the_first_round_draws_what_was_asked_and_later_rounds_what_the_pass_rate_asks_for():
    collecting = pool(wanted=4, first_draw=8)
    assert collecting.next_draw == 8
    collecting.add([of(2, 4)] * 2 + [of(0, 4)] * 6)
    assert collecting.next_draw == 8  # two are missing and one in four passes
    collecting.add([of(2, 4)] * 1 + [of(0, 4)] * 7)
    assert collecting.next_draw == 6  # one is missing: 3 of 16 passed


def test_a_later_round_never_draws_more_than_twice_the_first():
    collecting = pool(wanted=100)
    collecting.add([of(0, 4)] * 100)
    assert collecting.next_draw == 200


def test_what_passes_beyond_the_batch_is_surplus_and_goes_back_as_prompts():
    collecting = pool(wanted=2)
    groups = [make_group([1.0, 0.0], name=name) for name in "abcd"]
    collecting.add(groups)
    assert collecting.is_full
    assert collecting.kept == groups[:2]
    assert [prompt.problem.id for prompt in collecting.surplus] == ["c", "d"]
    assert collecting.counts == {"kept": 2, "surplus": 2}


@pytest.mark.parametrize("band", [PAPER, None])
def test_undecided_groups_stay_out_of_the_batch_and_are_counted(band):
    collecting = pool(wanted=1, band=band)
    collecting.add([make_group([1.0, None]), make_group([1.0, 0.0], name="b")])
    assert [group.prompt.problem.id for group in collecting.kept] == ["b"]
    assert collecting.counts == {"undecided": 1, "kept": 1}


def test_without_a_band_every_decided_group_is_kept():
    collecting = pool(wanted=2, band=None)
    collecting.add([of(0, 4), of(4, 4)])
    assert collecting.counts == {"kept": 2}


@pytest.mark.parametrize(
    ("group", "says"),
    [
        (of(4, 4), "solves nearly everything"),
        (of(0, 4), "solves next to nothing"),
        (make_group([None, 1.0]), r"could not decide \(scripted\): mend it"),
        (make_group([1.0, 0.0], finish_reasons=["length"] * 2), "max_new_tokens"),
    ],
)
def test_a_starved_step_says_what_was_dropped_and_what_to_do(group, says):
    collecting = pool(wanted=2, band=FilterBand(low=0.2, high=0.8, drop_truncated=True), max_rounds=2)
    for _ in range(2):
        assert collecting.next_draw > 0
        collecting.add([group, group])
    with pytest.raises(StarvedError, match=says) as raised:
        _ = collecting.next_draw
    assert "0 of 2 prompts passed the filter after 2 rounds (4 " in str(raised.value)
    assert raised.value.groups == collecting.groups


def test_a_starved_step_counts_the_verdicts_by_reason():
    collecting = pool(wanted=1, band=FilterBand(low=0.2, high=0.8), max_rounds=1)
    assert collecting.next_draw > 0
    for reason, count in (("a", 2), ("b", 3), ("c", 1), ("d", 1), ("e", 1), ("f", 1)):
        group = of(0, 4)
        verdicts = tuple(replace(verdict, reason=reason) for verdict in group.verdicts)
        collecting.add([replace(group, verdicts=verdicts)] * count)
    with pytest.raises(StarvedError, match=r"verdicts: 12 wrong \(b\), 8 wrong \(a\), .*, 4 others; the policy"):
        _ = collecting.next_draw


def test_a_batch_holds_the_groups_in_order_with_their_outcomes_and_step_ends():
    groups = [make_group([1.0, 0.25], name="a"), make_group([0.0, 1.0], name="b")]
    batch = collate_groups(groups, 7, step_ends=lambda ids: [len(ids) - 1])
    assert batch.step == 7
    assert batch.outcomes_B.tolist() == [1.0, 0.25, 0.0, 1.0]
    assert batch.groups_B.tolist() == [0, 0, 1, 1]
    assert [ends.tolist() for ends in batch.step_ends] == [[1]] * 4
    assert batch.tokens_BL[0].tolist() == [7, 8, 9, ord("a"), ord("b")]
    assert batch.sampler_logprobs_BT is not None
    assert batch.sampler_logprobs_BT.tolist() == [[-0.5, -0.5]] * 4


@given(
    turns=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    observation=st.text("xyz", min_size=1, max_size=3),
)
def test_what_is_computed_of_trained_tokens_does_not_know_of_observations(turns, observation):
    """Cut out the observations, and all that training reads over trained tokens is the same."""
    segments = [make_trajectory(turn, version=n).segments[0] for n, turn in enumerate(turns)]
    seen = Segment(np.array([*map(ord, observation)], np.int32), np.zeros(0, np.float32), None)
    with_observations = tuple(s for segment in segments for s in (segment, seen))[:-1]
    groups = [
        replace(make_group([1.0]), trajectories=(replace(make_trajectory(), segments=made),))
        for made in (with_observations, tuple(segments))
    ]
    one, other = (collate_groups([group], 1, step_ends=lambda ids: [len(ids) - 1]) for group in groups)
    for name in ("mask_BT", "sampler_logprobs_BT", "weight_versions_BT", "response_lengths_B"):
        assert getattr(one, name).equal(getattr(other, name)), name
    assert one.tokens_BL[one.loss_mask_BL].equal(other.tokens_BL[other.loss_mask_BL])
    assert one.weight_versions_BT is not None
    assert one.weight_versions_BT[0].tolist() == [n for n, turn in enumerate(turns) for _ in turn]
    ends = np.cumsum([len(turn) for turn in turns]) - 1
    assert one.step_ends[0].tolist() == ends.tolist(), "a turn ends a step"
    assert other.step_ends[0].tolist() == ends[-1:].tolist(), "without observations it is one turn"
    assert int(one.lengths_B) == int(other.lengths_B) + len(observation) * (len(turns) - 1)
