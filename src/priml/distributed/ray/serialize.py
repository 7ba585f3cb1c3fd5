"""Weights on their way through Ray's object store, with their tensors as numpy arrays.

Of an array, all processes of a node read one copy, where the store lies in memory; of a tensor, each makes its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parcel:
    """What `packed` makes of a value."""

    rest: Any
    """All but the tensors, in whose places stand `_Place`s."""
    arrays: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Which array a tensor is, and of what type and shape."""

    number: int
    dtype: torch.dtype
    shape: torch.Size


def packed(value: Any) -> Parcel:
    """A value ready for the store: tensors on the CPU without gradient, in dataclasses and dictionaries or by
    themselves."""
    arrays: list[NDArray[Any]] = []

    def put(tensor: Tensor) -> _Place:
        arrays.append(tensor.contiguous().flatten().view(torch.uint8).numpy())  # numpy has no bfloat16
        return _Place(len(arrays) - 1, tensor.dtype, tensor.shape)

    rest = changed(value, Tensor, put)
    return Parcel(rest, tuple(arrays))


def unpacked(parcel: Parcel) -> Any:
    """The value. Nobody may write into its tensors: they are everybody's."""

    def take(place: _Place) -> Tensor:
        array = parcel.arrays[place.number]
        if not array.size:
            return torch.empty(place.shape, dtype=place.dtype)  # of nothing there is no view of another type
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # which is what we want
            return torch.from_numpy(array).view(place.dtype).view(place.shape)

    return changed(parcel.rest, _Place, take)


def changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The value with everything of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: changed(item, kind, change) for key, item in cast(dict[Any, Any], value).items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: changed(getattr(value, field.name), kind, change) for field in fields(value)}
        return replace(value, **parts)
    return value
