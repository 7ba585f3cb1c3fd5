"""Who shares the work on a model: several processes that hold the same batch, or this one alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Team(Protocol):
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


class Alone:
    """A team of one."""

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


def total(team: Team, number: float) -> float:
    """The sum of a number over the ranks. A collective."""
    held = torch.tensor(number, dtype=torch.float64)
    team.sum_(held)
    return float(held)


def deal(sizes: Sequence[int], hands: int) -> list[list[int]]:
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
