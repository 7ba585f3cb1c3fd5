"""Tensors of which each rank of a team holds a shard: as files, and in full.

The files are safetensors, one of each rank, in a folder (`torch.distributed.checkpoint` with its Hugging Face storage,
which notes in a file's header where its pieces belong). They can be read by any number of ranks, by a process alone,
and by anything that reads safetensors; nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether some of them are spread over ranks."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def writes_whole_files() -> bool:
    """Whether this process is the one that writes what is not in shards: the only one, or the first of several."""
    return not dist.is_initialized() or dist.get_rank() == 0


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank may hold a shard, in full. A collective if so."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Each rank its shards, into a file of its own. A collective."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save({name: tensor.detach() for name, tensor in tensors.items()}, storage_writer=writer)


@torch.no_grad()
def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, sharded in whatever way, from the safetensors files of a folder. A collective, in a team."""
    reader = HuggingFaceStorageReader(str(folder))
    dcp.load(
        {name: tensor.detach() for name, tensor in tensors.items()},
        storage_reader=reader,
        no_dist=not dist.is_initialized(),
    )


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and full shapes of the tensors in the safetensors files of a folder."""
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    return {name: tuple(entry.size) for name, entry in metadata.state_dict_metadata.items()}  # pyright: ignore
