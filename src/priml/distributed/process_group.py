"""The processes that share the work on a batch: those of `torch.distributed`, or this one alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from priml.errors import PrimlError

T = TypeVar("T")


class ProcessGroup(Protocol):
    """The processes (ranks) that work on one batch together.

    Every rank runs the same code on the same whole batch and asks for the same collectives in the same order; of the
    rows it works on a share.
    """

    @property
    def rank(self) -> int:
        """This one, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks. A collective."""
        ...

    def max_(self, tensor: Tensor) -> None:
        """Replace a tensor by its maximum over the ranks. A collective."""
        ...

    def first(self, ask: Callable[[], T]) -> T:
        """What the first rank's `ask` returns, which is called there alone; what it raises, all raise. A collective."""
        ...

    def at(self, place: str) -> None:
        """Note what this rank does next, for the message when the others wait for it in vain."""
        ...


class SingleProcess:
    """a group of one."""

    rank = 0
    size = 1

    def sum_(self, tensor: Tensor) -> None:
        """It is its own sum."""

    def max_(self, tensor: Tensor) -> None:
        """It is its own maximum."""

    def first(self, ask: Callable[[], T]) -> T:
        """It is the first."""
        return ask()

    def at(self, place: str) -> None:
        """Nobody waits."""


class TorchProcessGroup:
    """The default process group of torch, which it opens: gloo for tensors on the CPU, NCCL for those on GPUs."""

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        address: str,
        device: torch.device,
        timeout_s: float,
        at: Callable[[str], None] = lambda place: None,
    ) -> None:
        """`address` is where the ranks find each other: `tcp://HOST:PORT` of rank 0. A collective that some rank does
        not join raises after `timeout_s` seconds. `at` is told what this rank does next."""
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
        self.at = at

    def sum_(self, tensor: Tensor) -> None:
        """All-reduce."""
        dist.all_reduce(tensor)

    def max_(self, tensor: Tensor) -> None:
        """All-reduce."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def first(self, ask: Callable[[], T]) -> T:
        """A broadcast of what was returned, or of our own kind of error."""
        answer: Any = None
        error: PrimlError | None = None
        if self.rank == 0:
            try:
                answer = ask()
            except PrimlError as found:
                error = found
        told = [answer, error]
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        answer, error = told
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


def total(process_group: ProcessGroup, number: float) -> float:
    """The sum of a number over the ranks. A collective."""
    held = torch.tensor(number, dtype=torch.float64)
    process_group.sum_(held)
    return float(held)


def balance_by_size(sizes: Sequence[int], hands: int) -> list[list[int]]:
    """Indices dealt to so many hands, of about equal sums of sizes; in each hand in the order given.

    The largest first, each to the hand that holds least: at most a third above the best possible (Graham, 1969).
    """
    shares: list[list[int]] = [[] for _ in range(hands)]
    held = [0] * hands
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = held.index(min(held))
        shares[least].append(index)
        held[least] += sizes[index]
    return [sorted(share) for share in shares]
