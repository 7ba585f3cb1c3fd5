"""Values on their way through Ray's object store, with their tensors as numpy arrays.

Of an array, all processes of a node read one copy, where the store lies in memory; of a tensor, each makes its own.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

_Place: TypeAlias = tuple[int, torch.dtype, tuple[int, ...]]
"""Which array a tensor is, and of what type and shape."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What `packed` makes of a value."""

    rest: bytes
    """All but the tensors, in whose places stand their numbers."""
    arrays: tuple[NDArray[Any], ...]


def packed(value: Any) -> Parcel:
    """A value ready for the store; its tensors are on the CPU and have no gradient."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return Parcel(file.getvalue(), tuple(pickler.arrays))


def unpacked(parcel: Parcel) -> Any:
    """The value. Nobody may write into its tensors: they are everybody's."""
    return _Unpickler(parcel).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.arrays: list[NDArray[Any]] = []

    def persistent_id(self, obj: Any) -> _Place | None:
        if not isinstance(obj, Tensor):
            return None
        self.arrays.append(obj.contiguous().flatten().view(torch.uint8).numpy())  # numpy has no bfloat16
        return len(self.arrays) - 1, obj.dtype, tuple(obj.shape)


class _Unpickler(pickle.Unpickler):
    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.rest))
        self._arrays = parcel.arrays

    def persistent_load(self, pid: _Place) -> Tensor:
        number, dtype, shape = pid
        if not self._arrays[number].size:
            return torch.empty(shape, dtype=dtype)  # of nothing there is no view of another type
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # which is what we want
            return torch.from_numpy(self._arrays[number]).view(dtype).view(shape)
