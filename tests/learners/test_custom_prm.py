import pytest
import torch

from priml.batch import Batch, Row, collate
from priml.errors import UsageError
from priml.learners.custom_prm import CustomPrm


def make_batch(*lengths: int) -> Batch:
    rows = [Row([1], [2] * length, outcome=1.0, group=0, step_ends=[length - 1]) for length in lengths]
    return collate(rows, step=1)


def test_rewards_are_those_of_the_function_and_zero_on_padding():
    prm = CustomPrm(lambda batch, tokenizer: torch.full(batch.mask_BT.shape, len(tokenizer)), "ab", name="my.py:f")
    with pytest.raises(UsageError, match=r"my\.py:f returned"):  # whole numbers
        prm.rewards(make_batch(1, 2))
    prm = CustomPrm(lambda batch, tokenizer: torch.ones(batch.mask_BT.shape) * len(tokenizer), "ab", name="my.py:f")
    assert prm.rewards(make_batch(1, 2)).rewards_BT.tolist() == [[2.0, 0.0], [2.0, 2.0]]
    assert prm.rewards(make_batch(1, 2)).beta is None


def test_it_neither_learns_nor_leaves_weights(tmp_path):
    prm = CustomPrm(lambda batch, tokenizer: torch.zeros(batch.mask_BT.shape), None, name="my.py:f")
    assert prm.update(make_batch(1)) is None
    assert prm.digest() is None
    assert list(prm.stage(tmp_path)) == []
