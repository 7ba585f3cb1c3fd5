"""Sharing out rows, and a group of one."""

import pytest
import torch

from priml.distributed.process_group import ProcessGroup, balance_by_size, total


def test_alone_every_number_is_its_own_sum_to_the_last_bit():
    tensor = torch.tensor([0.1, float("inf")])
    ProcessGroup().sum_(tensor)
    ProcessGroup().max_(tensor)
    assert tensor.tolist() == torch.tensor([0.1, float("inf")]).tolist()
    assert total(ProcessGroup(), 0.1) == 0.1


def test_one_part_gets_everything_in_order():
    assert balance_by_size([5, 3, 9], 1) == [[0, 1, 2]]


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_hands_are_of_about_equal_weight_and_every_index_is_dealt_once(parts: int):
    sizes = torch.randint(1, 100, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    shares = balance_by_size(sizes, parts)
    assert sorted(index for share in shares for index in share) == list(range(40))
    assert all(share == sorted(share) for share in shares)
    weights = [sum(sizes[i] for i in share) for share in shares]
    assert max(weights) - min(weights) <= max(sizes)
    assert max(weights) <= 4 / 3 * sum(sizes) / parts


def test_with_more_hands_than_things_some_stay_empty():
    assert sorted(map(len, balance_by_size([4, 2], 3))) == [0, 1, 1]
