"""Tensors through the object store: equal on the other side, and one copy for all processes of a node."""

from __future__ import annotations

import copyreg
import io
import pickle
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from priml.batch import Batch, Row, TokenScores, collate
from priml.distributed.ray.serialize import array_from_tensor, share_tensors, tensor_from_array
from priml.learners.base import ProcessRewards


def travelled(value: Any) -> Any:
    """The value as another process has it: tensors as Ray serializes them, arrays in memory nobody may write to."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=buffers.append)
    pickler.dispatch_table = copyreg.dispatch_table | {
        torch.Tensor: lambda tensor: (tensor_from_array, (array_from_tensor(tensor),))
    }
    pickler.dump(value)
    return pickle.loads(file.getvalue(), buffers=[memoryview(buffer).toreadonly() for buffer in buffers])


def a_batch(tokens: int = 5) -> Batch:
    rows = [Row((1, 2), range(n), 1.0, 0, (n - 1,), sampler_logprobs=[-0.5] * n) for n in (tokens, tokens // 2)]
    batch = collate(rows, step=3)
    return batch.with_old(TokenScores(torch.randn(2, tokens), torch.rand(2, tokens)))


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, torch.Tensor):
            assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())
        elif isinstance(theirs, TokenScores):
            assert_equal(ours, theirs)
        else:
            assert ours == theirs


def test_a_batch_and_rewards_come_out_as_they_went_in() -> None:
    batch = a_batch()
    versions_B = torch.tensor([3, 4], dtype=torch.int32)
    for value in (batch, ProcessRewards(torch.rand(2, 5), beta=0.5, prm_versions_B=versions_B)):
        assert_equal(travelled(value), value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.bool, torch.int32], ids=str)
def test_tensors_of_every_type_and_shape_come_out_as_they_went_in(dtype: torch.dtype) -> None:
    for tensor in (torch.ones(3, 2, dtype=dtype), torch.ones((), dtype=dtype), torch.ones(4, 0, dtype=dtype)):
        found = travelled({"weights": tensor.T if tensor.dim() else tensor})["weights"]
        assert found.dtype == dtype
        assert torch.equal(found, tensor.T if tensor.dim() else tensor)


def test_read_only_arrays_become_tensors_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = a_batch()
        assert_equal(travelled(batch), batch)


def where(pointer: int) -> tuple[str, int]:
    """The file that an address of this process is mapped from, and the place in it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, inode, *_ = line.split()
        start, end = (int(x, 16) for x in span.split("-"))
        if start <= pointer < end:
            return inode, pointer - start + int(offset, 16)
    raise AssertionError("an address is mapped")


class Looker:
    """Stands for a rank."""

    def look(self, batch: Batch) -> tuple[int, list[tuple[str, int]]]:
        assert batch.old is not None
        assert batch.sampler_logprobs_BT is not None
        tensors = [batch.tokens_BL, batch.old.logprobs_BT, batch.sampler_logprobs_BT]
        return int(batch.tokens_BL.sum()), [where(t.data_ptr()) for t in tensors]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_all_processes_of_a_node_look_at_one_copy(ray_here: Any) -> None:
    share_tensors()
    batch = a_batch(200_000)
    ref = ray_here.put(batch)
    lookers = [ray_here.remote(Looker).options(num_cpus=0).remote() for _ in range(2)]
    (sum_a, places_a), (sum_b, places_b) = ray_here.get([looker.look.remote(ref) for looker in lookers])
    assert sum_a == sum_b == int(batch.tokens_BL.sum())
    assert places_a == places_b
    assert all(inode != "0" for inode, _ in places_a), "mapped from the store, not copied into the process"
    _, here = Looker().look(ray_here.get(ref))
    assert here == places_a, "the driver, too"
