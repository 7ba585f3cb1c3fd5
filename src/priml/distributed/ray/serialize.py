"""Tensors in Ray's object store as numpy arrays: all processes of a node read one copy.

Of a tensor each process would make a copy of its own. Ray has this as a setting, too, but only since 2.5x, by an
environment variable that must be set on all nodes before Ray starts.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from priml.distributed.ray.cluster import import_ray

_Serialized: TypeAlias = tuple[NDArray[Any], torch.dtype, torch.Size]


def share_tensors() -> None:
    """Let this process put tensors into the store as arrays. They must be on the CPU, without gradient."""
    import_ray().util.register_serializer(Tensor, serializer=array_from_tensor, deserializer=tensor_from_array)


def array_from_tensor(tensor: Tensor) -> _Serialized:
    """Bytes, because numpy has no bfloat16; type; shape."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy(), tensor.dtype, tensor.shape


def tensor_from_array(serialized: _Serialized) -> Tensor:
    """The tensor. Nobody may write into it: other processes read the same memory."""
    array, dtype, shape = serialized
    if not array.size:
        return torch.empty(shape, dtype=dtype)  # an empty array has no view of another type
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # as intended
        return torch.from_numpy(array).view(dtype).view(shape)
