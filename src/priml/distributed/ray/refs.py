"""Tensors that stay in the object store: the driver passes them on by reference, and never has them.

A tensor with a number for each token is put into the store by the process that made it. Where the loop computes with
such tensors (the advantages), their place in the expression is taken by `Held`: torch hands the function to it
(`__torch_function__`, the protocol for objects that stand for tensors), and the function goes to where the tensors are.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from priml.batch import Batch
from priml.distributed.ray.cluster import import_ray, stored
from priml.distributed.ray.serialize import changed

Apply = Callable[..., Any]
"""`apply(function, *args, **kwargs)`: calls the function where tensors lie, and holds what it returns."""


class Held:
    """Stands for what lies in the object store: a [B, T] tensor, or something of the same size."""

    def __init__(self, ref: Any, shape: torch.Size, apply: Apply | None = None) -> None:
        """`apply` is known to the driver alone."""
        self.ref = ref
        self.shape = shape
        self.apply = apply

    def fetch(self) -> Any:
        """It. Nobody may write into it: on a node it is everybody's."""
        return _shared(stored(self.ref))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ref, self.shape)

    def __add__(self, other: Any) -> Any:
        return self.__torch_function__(operator.add, (), (self, other))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """A function of tensors some of which are held."""
        given = (*args, *(kwargs or {}).values())
        apply = next(arg.apply for arg in given if isinstance(arg, Held) and arg.apply)
        return apply(func, *args, **kwargs or {})


class HeldMask(Held):
    """The mask of a held batch, which is made of its lengths where it is needed."""

    def __init__(self, lengths_B: Tensor, shape: torch.Size, apply: Apply | None = None) -> None:
        super().__init__(lengths_B, shape, apply)

    def fetch(self) -> Tensor:
        """It, made anew."""
        return torch.arange(self.shape[1]).unsqueeze(0) < self.ref.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class HeldBatch(Batch):
    """A batch whose numbers per token are held. Those per response are here."""

    @property
    def mask_BT(self) -> Any:
        """Stands for it."""
        tokens: Any = self.tokens_BL
        return HeldMask(
            self.response_lengths_B, torch.Size((len(self), int(self.response_lengths_B.max()))), tokens.apply
        )


def _put(value: Any, shape: torch.Size) -> Held:
    return Held(import_ray().put(value.contiguous().numpy() if isinstance(value, Tensor) else value), shape)


def _shared(value: Any) -> Any:
    """A tensor of an array, which it shares; anything else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # which is what we want
        return torch.from_numpy(value)


def held(value: Any) -> Any:
    """The value with its tensors of two dimensions, and the step ends of a batch, in the object store."""
    value = changed(value, Tensor, lambda x: _put(x, x.shape) if x.dim() == 2 else x)
    if not isinstance(value, Batch):
        return value
    return replace(value, step_ends=_put(value.step_ends, torch.Size((len(value),))))


def fetched(value: Any) -> Any:
    """The value with all that is held."""
    value = changed(value, Held, lambda x: x.fetch())
    return Batch(**{f.name: getattr(value, f.name) for f in fields(Batch)}) if isinstance(value, HeldBatch) else value


def on_driver(value: Any, apply: Apply) -> Any:
    """The value as a rank returned it, with what is held ready for functions of tensors."""
    value = changed(value, Held, lambda x: Held(x.ref, x.shape, apply))
    return HeldBatch(**{f.name: getattr(value, f.name) for f in fields(Batch)}) if isinstance(value, Batch) else value
