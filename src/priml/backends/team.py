"""The processes of a `torch.distributed` group as a team."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from priml.errors import PrimlError

T = TypeVar("T")


class ProcessTeam:
    """A `Team` over the default process group, which it opens: gloo for tensors on the CPU, NCCL for those on GPUs."""

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
