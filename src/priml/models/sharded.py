"""Tensors of which each rank of a process group has a shard: as files, and in full.

The files are safetensors, one of each rank, in a folder. Their format is that of the Hugging Face storage of
`torch.distributed.checkpoint`: the header of a file notes where its pieces belong. Any number of ranks can read them.

`torch.distributed.checkpoint` does not write them: its writer makes one string of bytes of a file first. That takes the
memory once more, and Python's lock, for which training in another thread waits. Its ranks also exchange messages, which
would need a second process group beside that of training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageReader
from torch.distributed.tensor import DTensor

from priml.types import Write


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether some tensors are spread over ranks."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def writes_whole_files() -> bool:
    """Whether this process writes what is not in shards: the only process, or rank 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full. A collective if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


@torch.no_grad()
def stage_shards(tensors: Mapping[str, Tensor], folder: Path) -> list[Write]:
    """Copy this rank's shards to host memory; what is returned writes them into a file of its own."""
    planner = DefaultSavePlanner()
    planner.set_up_planner({name: tensor.detach() for name, tensor in tensors.items() if _is_written_here(tensor)})
    pieces: dict[str, Tensor] = {}
    places: dict[str, dict[str, list[int]]] = {}
    for item in planner.create_local_plan().items:
        piece = planner.resolve_data(item)
        assert isinstance(piece, Tensor), "there is nothing but tensors"
        assert item.tensor_data is not None, "each with its place"
        if piece.numel():
            pieces[item.index.fqn] = on_host(piece)
            places[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
    if not pieces:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}
    return [partial(_write_flushed, pieces, folder / f"rank-{dist.get_rank():05d}.safetensors", metadata)]


def _is_written_here(tensor: Tensor) -> bool:
    """Of replicas the first writes; what no rank shares with others, the first rank."""
    if not isinstance(tensor, DTensor):
        return writes_whole_files()
    place = tensor.device_mesh.get_coordinate()
    assert place is not None, "every rank is on the mesh"
    return not any(index for index, placement in zip(place, tensor.placements, strict=True) if placement.is_replicate())


def _write_flushed(pieces: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """With fsync: the process that renames the folder may be on another machine, and cannot flush this one's files."""
    save_file(dict(pieces), path, metadata)
    with path.open("rb") as file:
        os.fsync(file.fileno())


@torch.no_grad()
def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, sharded in whatever way, from the safetensors files of a folder. A collective."""
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
