"""The processes that share the work on a batch: a group of `torch.distributed`, or this process alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from priml.errors import PrimlError

T = TypeVar("T")


class ProcessGroup:
    """The processes (ranks) that work on one batch together: here, this process alone.

    Every rank runs the same code on the same whole batch, and calls the same collectives in the same order. Each rank
    works on a share of the rows.
    """

    rank = 0
    size = 1

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks. A collective."""

    def max_(self, tensor: Tensor) -> None:
        """Replace a tensor by its maximum over the ranks. A collective."""

    def broadcast_from_rank0(self, compute: Callable[[], T]) -> T:
        """Call `compute` on rank 0 alone and return its result on all ranks. All raise what it raises. A collective."""
        return compute()

    def report_progress(self, what: str) -> None:
        """Note what this rank does next, for the error message when the others wait for it in vain."""


class TorchProcessGroup(ProcessGroup):
    """The default process group of torch, which this class opens: gloo for CPU tensors, NCCL for GPU tensors."""

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        address: str,
        device: torch.device,
        timeout_s: float,
        report_progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        """`address` is `tcp://HOST:PORT` of rank 0, where the ranks find each other.

        A collective that some rank does not join raises after `timeout_s` seconds.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=address,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
        self.rank = rank
        self.size = size
        self._report_progress = report_progress

    def report_progress(self, what: str) -> None:
        self._report_progress(what)

    def sum_(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor)

    def max_(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def broadcast_from_rank0(self, compute: Callable[[], T]) -> T:
        result: T | None = None
        error: PrimlError | None = None
        if self.rank == 0:
            try:
                result = compute()
            except PrimlError as raised:
                error = raised
        sent = [result, error]
        dist.broadcast_object_list(sent, src=0, device=torch.device("cpu"))
        result, error = cast(tuple[T, PrimlError | None], sent)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        dist.destroy_process_group()


def total(process_group: ProcessGroup, number: float) -> float:
    """The sum of a number over the ranks. A collective."""
    summed = torch.tensor(number, dtype=torch.float64)
    process_group.sum_(summed)
    return float(summed)


def balance_by_size(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Split indices into parts of about equal sums of sizes. Each part keeps the order given.

    The largest goes first, each to the smallest part so far. No part is more than a third above the best possible
    (Graham, 1969).
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        smallest = sums.index(min(sums))
        shares[smallest].append(index)
        sums[smallest] += sizes[index]
    return [sorted(share) for share in shares]
