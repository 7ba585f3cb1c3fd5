"""Responses of earlier steps, kept in host memory: the PRM, and only the PRM, learns from them again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from priml.batch import Batch, Row, collate
from priml.errors import ModelError
from priml.types import Write

FILE = "replay.safetensors"
_BYTES_PER_TOKEN = 9  # token id, log-prob of the reference, whether the policy sampled it


def replay_bytes(keep: int, longest: int) -> int:
    """Host memory of so many kept responses of `longest` tokens, prompts included."""
    return keep * longest * _BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class _Response:
    """One response, with what the reference said of it when it was new."""

    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    is_trained: NDArray[np.bool_]
    ref_logprobs: NDArray[np.float32]
    """One for each trained token."""
    outcome: float


@dataclass(eq=False)
class Replay:
    """The newest groups of responses. Every rank keeps the same ones and draws the same ones."""

    passes: int
    """So many passes of the size of the new batch, drawn from all kept groups, the new ones included."""
    keep: int
    """At most so many responses; the oldest groups leave first."""
    seed: int
    _groups: deque[list[_Response]] = field(default_factory=deque[list[_Response]], init=False)

    def __len__(self) -> int:
        """Responses kept."""
        return sum(map(len, self._groups))

    def add(self, batch: Batch, rows: Sequence[int], ref_BT: Tensor) -> None:
        """Keep these rows of a batch. `ref_BT` are the log-probs [B, T] under the reference."""
        groups: dict[int, list[_Response]] = {}
        for row in rows:
            groups.setdefault(int(batch.groups_B[row]), []).append(_response(batch, row, ref_BT))
        self._groups.extend(groups.values())
        kept = len(self)
        while kept > self.keep and len(self._groups) > 1:
            kept -= len(self._groups.popleft())

    def draw(self, step: int, size: int, mini_batch: int | None) -> Iterator[tuple[Batch, Tensor]]:
        """Mini-batches of whole groups, with the reference's log-probs: about `passes * size` responses in all.

        Groups come in random order, each once before any comes twice. The same step draws the same ones. `mini_batch`
        None: `size` responses in each.
        """
        left = self.passes * size if self._groups else 0
        groups = self._shuffled(step)
        while left > 0:
            wanted, chosen = min(mini_batch or size, left), list[list[_Response]]()
            while sum(map(len, chosen)) < wanted:
                chosen.append(next(groups))
            left -= sum(map(len, chosen))
            yield _collated(chosen, step)

    def _shuffled(self, step: int) -> Iterator[list[_Response]]:
        """All groups in random order, again and again."""
        rng = random.Random(f"{self.seed}/{step}")
        while True:
            yield from rng.sample(list(self._groups), len(self._groups))

    def stage(self, folder: Path) -> list[Write]:
        """What a resumed run needs, as functions that write it."""
        if not self._groups:
            return []
        groups = list(self._groups)  # the responses themselves never change
        return [partial(_write, groups, folder / FILE)]

    def load(self, folder: Path) -> None:
        """Restore what `stage` wrote.

        Raises:
            ModelError: the file is not one of these.
        """
        path = folder / FILE
        self._groups = deque(_read(path)) if path.exists() else deque()


def _response(batch: Batch, row: int, ref_BT: Tensor) -> _Response:
    start, end = int(batch.prompt_lengths_B[row]), int(batch.lengths_B[row])
    return _Response(
        prompt_ids=batch.tokens_BL[row, :start].numpy().astype(np.int32),
        response_ids=batch.tokens_BL[row, start:end].numpy().astype(np.int32),
        is_trained=batch.loss_mask_BL[row, start:end].numpy().copy(),
        ref_logprobs=ref_BT[row, : int(batch.response_lengths_B[row])].numpy().astype(np.float32),
        outcome=float(batch.outcomes_B[row]),
    )


def _collated(groups: Sequence[Sequence[_Response]], step: int) -> tuple[Batch, Tensor]:
    """One batch of whole groups, and the reference's log-probs [B, T]."""
    rows: list[Row] = []
    for number, group in enumerate(groups):
        rows += [
            Row(
                prompt_ids=response.prompt_ids.tolist(),
                response_ids=response.response_ids,
                outcome=response.outcome,
                group=number,
                step_ends=(),
                is_trained=response.is_trained,
            )
            for response in group
        ]
    batch = collate(rows, step=step)
    ref_BT = torch.zeros(batch.mask_BT.shape)
    for row, response in enumerate(response for group in groups for response in group):
        ref_BT[row, : len(response.ref_logprobs)] = torch.from_numpy(response.ref_logprobs)
    return batch, ref_BT


def _write(groups: Sequence[Sequence[_Response]], path: Path) -> None:
    every = [response for group in groups for response in group]
    save_file(
        {
            "group_sizes": np.array([len(group) for group in groups], dtype=np.int64),
            "prompt_lengths": np.array([len(response.prompt_ids) for response in every], dtype=np.int64),
            "response_lengths": np.array([len(response.response_ids) for response in every], dtype=np.int64),
            "outcomes": np.array([response.outcome for response in every], dtype=np.float64),
            "prompt_ids": np.concatenate([response.prompt_ids for response in every]),
            "response_ids": np.concatenate([response.response_ids for response in every]),
            "is_trained": np.concatenate([response.is_trained for response in every]),
            "ref_logprobs": np.concatenate([response.ref_logprobs for response in every]),
        },
        path,
    )


def _read(path: Path) -> Iterator[list[_Response]]:
    try:
        saved = load_file(path)
        parts = zip(
            np.split(saved["prompt_ids"], np.cumsum(saved["prompt_lengths"])[:-1]),
            np.split(saved["response_ids"], np.cumsum(saved["response_lengths"])[:-1]),
            np.split(saved["is_trained"], np.cumsum(saved["response_lengths"])[:-1]),
            saved["outcomes"].tolist(),
            strict=True,
        )
        used, every = 0, list[_Response]()
        for prompt_ids, response_ids, is_trained, outcome in parts:
            count = int(is_trained.sum())
            ref_logprobs = saved["ref_logprobs"][used : used + count]
            every.append(_Response(prompt_ids, response_ids, is_trained, ref_logprobs, outcome))
            used += count
        ends = np.cumsum(saved["group_sizes"]).tolist()
    except (KeyError, ValueError, OSError, SafetensorError) as error:
        raise ModelError(
            f"{path}: this is no file of kept responses ({error}); resume from an older checkpoint, or set "
            "prm.replay: null in the run's config.yaml"
        ) from None
    yield from (every[start:end] for start, end in zip([0, *ends], ends, strict=False))
