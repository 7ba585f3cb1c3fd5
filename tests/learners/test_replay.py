"""Kept responses: which stay, which are drawn, what a resumed run has of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fakes import save
from priml.batch import Batch, Row, collate
from priml.errors import ModelError
from priml.learners.replay import FILE, Replay, replay_bytes


def make_step(step: int, groups: int = 3, size: int = 2) -> Batch:
    """Responses of step s begin with token 10 s + group; the second has an observation in its middle."""
    rows: list[Row] = []
    for group in range(groups):
        for k in range(size):
            response = np.array([10 * step + group, 90 + k, 7][: 2 + k], dtype=np.int32)
            is_trained = np.array([True, k == 0, True][: 2 + k])
            rows.append(Row([1, 2], response, float(k), group, step_ends=(), is_trained=is_trained))
    return collate(rows, step=step)


def make_reference(batch: Batch) -> torch.Tensor:
    return -torch.arange(1.0, batch.mask_BT.numel() + 1).reshape(batch.mask_BT.shape) * batch.mask_BT


def filled(*steps: int, keep: int = 100, passes: int = 1) -> Replay:
    replay = Replay(passes, keep, seed=0)
    for step in steps:
        batch = make_step(step)
        replay.add(batch, range(len(batch)), make_reference(batch))
    return replay


def firsts(batch: Batch) -> list[int]:
    """The first token of each response."""
    return batch.tokens_BL[torch.arange(len(batch)), batch.prompt_lengths_B].tolist()


def test_the_oldest_groups_leave_first_and_groups_stay_whole() -> None:
    replay = filled(1, 2, 3, keep=7)
    assert len(replay) == 6
    drawn = [first for batch, _ in replay.draw(4, 6, None) for first in firsts(batch)]
    assert sorted(drawn) == [30, 30, 31, 31, 32, 32]


def test_more_than_may_be_kept_of_one_group_stay_as_long_as_they_are_the_newest() -> None:
    replay = Replay(1, 1, seed=0)
    batch = make_step(1, groups=1, size=2)
    replay.add(batch, range(2), make_reference(batch))
    assert len(replay) == 2


def test_every_group_comes_once_before_one_comes_twice() -> None:
    drawn = [first for batch, _ in filled(1, 2, passes=2).draw(3, 12, 4) for first in firsts(batch)]
    assert len(drawn) == 24
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == sorted([10, 11, 12, 20, 21, 22] * 2)
    assert drawn[:12] != drawn[12:]


@pytest.mark.parametrize(("mini_batch", "sizes"), [(None, [6, 4]), (4, [4, 4, 2]), (1, [2] * 5)])
def test_mini_batches_are_whole_groups_up_to_the_passes(mini_batch: int | None, sizes: list[int]) -> None:
    # Of 10 responses wanted: groups of two fill up what was asked for, and the last one no more than what is left.
    drawn = [len(batch) for batch, _ in filled(1, 2, passes=2).draw(3, 5, mini_batch)]
    assert drawn == sizes


def test_the_same_step_draws_the_same_and_another_one_does_not() -> None:
    def drawn(step: int) -> list[int]:
        return [first for batch, _ in filled(1, 2, 3, passes=3).draw(step, 18, 6) for first in firsts(batch)]

    assert drawn(4) == drawn(4) != drawn(5)


def test_a_drawn_response_is_the_one_that_was_kept() -> None:
    original = make_step(1)
    ref_BT = make_reference(original)
    replay = filled(1)
    for batch, kept_ref_BT in replay.draw(2, 6, None):
        for row in range(len(batch)):
            twin = next(
                i
                for i in range(len(original))
                if batch.tokens_BL[row].tolist()[:5] == original.tokens_BL[i].tolist()[:5]
            )
            assert batch.outcomes_B[row] == original.outcomes_B[twin]
            assert batch.loss_mask_BL[row].tolist() == original.loss_mask_BL[twin].tolist()
            trained = int(batch.response_lengths_B[row])
            assert kept_ref_BT[row, :trained].tolist() == ref_BT[twin, :trained].tolist()
            assert not kept_ref_BT[row, trained:].any()
        together = {(int(batch.groups_B[row]), first) for row, first in enumerate(firsts(batch))}
        assert len(together) == len({group for group, _ in together})


def test_nothing_kept_is_nothing_drawn_and_nothing_written(tmp_path: Path) -> None:
    replay = Replay(3, 10, seed=0)
    assert list(replay.draw(1, 4, None)) == []
    assert replay.stage(tmp_path) == []


def test_a_resumed_run_draws_what_the_first_would_have(tmp_path: Path) -> None:
    first = filled(1, 2, keep=9, passes=2)
    for write in first.stage(tmp_path):
        write()
    again = Replay(2, 9, seed=0)
    again.load(tmp_path)
    for replay in (first, again):
        batch = make_step(3)
        replay.add(batch, range(len(batch)), make_reference(batch))
    pairs = zip(first.draw(4, 9, 4), again.draw(4, 9, 4), strict=True)
    for (mine, my_ref_BT), (other, other_ref_BT) in pairs:
        assert torch.equal(mine.tokens_BL, other.tokens_BL)
        assert torch.equal(mine.loss_mask_BL, other.loss_mask_BL)
        assert torch.equal(mine.outcomes_B, other.outcomes_B)
        assert torch.equal(my_ref_BT, other_ref_BT)


def test_what_was_staged_does_not_change_with_later_steps(tmp_path: Path) -> None:
    replay = filled(1)
    writes = replay.stage(tmp_path)
    batch = make_step(2)
    replay.add(batch, range(len(batch)), make_reference(batch))
    for write in writes:
        write()
    again = Replay(1, 100, seed=0)
    again.load(tmp_path)
    assert len(again) == 6


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weights": np.zeros(3)}, tmp_path / FILE)
    with pytest.raises(ModelError, match=r"replay.safetensors: this is no file .* prm.replay: null"):
        Replay(1, 10, seed=0).load(tmp_path)
    (tmp_path / FILE).write_bytes(b"half")
    with pytest.raises(ModelError, match="no file of kept responses"):
        Replay(1, 10, seed=0).load(tmp_path)


def test_memory_is_counted_per_token() -> None:
    batch = make_step(1, groups=1, size=1)
    replay = Replay(1, 10, seed=0)
    replay.add(batch, [0], make_reference(batch))
    (group,) = islice(replay._groups, 1)
    (kept,) = group
    size = sum(a.nbytes for a in (kept.prompt_ids, kept.response_ids, kept.is_trained, kept.ref_logprobs))
    assert size <= replay_bytes(1, 4)


# --- in the PRM --------------------------------------------------------------------------------------------------


def test_a_prm_with_replay_resumes_to_the_bit(tmp_path: Path, module: Any, twin: Any, make_prm: Any) -> None:
    def steps(prm: Any, numbers: list[int]) -> None:
        for number in numbers:
            prm.update(make_step(number))

    prm = make_prm(module, replay=Replay(2, 8, seed=3))
    steps(prm, [1, 2])
    save(prm, tmp_path)
    again = make_prm(twin(), replay=Replay(2, 8, seed=3))
    again.load(tmp_path)
    for role in (prm, again):
        steps(role, [3])
    assert prm.digest() == again.digest()
    assert prm.version == again.version == 9  # a pass over the new batch and two over kept ones, in each of three steps


def test_rewards_of_a_step_come_from_before_its_replay(module: Any, twin: Any, make_prm: Any) -> None:
    plain, replaying = make_prm(module), make_prm(twin(), replay=Replay(4, 100, seed=0))
    first = make_step(1)
    for prm in (plain, replaying):
        prm.update(first)
    assert torch.equal(plain.rewards(first).rewards_BT, replaying.rewards(first).rewards_BT)
    assert plain.digest() != replaying.digest()
