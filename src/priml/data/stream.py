"""The order in which a run meets its prompts: shuffled anew each epoch, and exact after a restart."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from priml.errors import DataError
from priml.types import Prompt


class ProblemStream:
    """Prompts without end. Each epoch holds every prompt once, in an order that follows from (seed, epoch) alone.

    `take` goes on into the next epoch when one is used up, and never gives a prompt twice in one call unless it is
    asked for more prompts than there are: one that the new epoch brings up again within a call is kept for the next.

    Raises `DataError` when there are no prompts or two problems share an id.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int):
        if not prompts:
            raise DataError("there are no prompts to draw from; name a data source that has some")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._index_by_id = {prompt.problem.id: index for index, prompt in enumerate(self._prompts)}
        if len(self._index_by_id) < len(self._prompts):
            raise DataError("two problems share an id; join data sources with priml.data.sources.with_unique_ids")
        self._digest = _digest(self._prompts)
        self._waiting: deque[int] = deque()
        self._start_epoch(0)

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self, n: int) -> list[Prompt]:
        """The next `n` prompts, those put back first."""
        taken: list[int] = []
        while len(taken) < n:
            taken += self._take_distinct(min(n - len(taken), len(self._prompts)))
        return [self._prompts[index] for index in taken]

    def put_back(self, prompts: Iterable[Prompt]) -> None:
        """Return prompts that were not used; the next `take` begins with them, in this order."""
        self._waiting.extend(self._index_by_id[prompt.problem.id] for prompt in prompts)

    def state(self) -> dict[str, Any]:
        """All that `load` needs, fit for JSON."""
        return {
            "seed": self._seed,
            "digest": self._digest,
            "epoch": self._epoch,
            "position": self._position,
            "waiting": [self._prompts[index].problem.id for index in self._waiting],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken. Raises `DataError` if the prompts or the seed are not the same."""
        if state["digest"] != self._digest:
            raise DataError(
                "the prompts have changed since the checkpoint was written (found digest "
                f"{self._digest[:12]}, needed {state['digest'][:12]}); restore the data, prompt settings and "
                "tokenizer of that run, or start a new one"
            )
        if state["seed"] != self._seed:
            raise DataError(
                f"the data order of the checkpoint has seed {state['seed']}, this run has {self._seed}; "
                f"set the seed to {state['seed']}, or start a new run"
            )
        self._start_epoch(state["epoch"])
        self._position = state["position"]
        self._waiting = deque(self._index_by_id[problem_id] for problem_id in state["waiting"])

    def _take_distinct(self, n: int) -> list[int]:
        taken: dict[int, None] = {}
        repeated: list[int] = []
        while len(taken) < n:
            index = self._next_index()
            if index in taken:
                repeated.append(index)
            else:
                taken[index] = None
        self._waiting.extendleft(reversed(repeated))
        return list(taken)

    def _next_index(self) -> int:
        if self._waiting:
            return self._waiting.popleft()
        if self._position == len(self._prompts):
            self._start_epoch(self._epoch + 1)
        self._position += 1
        return self._order[self._position - 1]

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._position = 0
        # Sorting by raw draws rather than Generator.permutation: NumPy promises that the former never change with its
        # version, and a run may be resumed years later.
        key = np.array([self._seed % 2**64, epoch], dtype=np.uint64)
        draws = np.random.Philox(key=key).random_raw(len(self._prompts))
        self._order: list[int] = np.argsort(draws, kind="stable").tolist()


def _digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 of ids, texts and answers, in order."""
    sha = hashlib.sha256()
    for prompt in prompts:
        for part in (prompt.problem.id, prompt.text, prompt.problem.answer):
            encoded = part.encode()
            sha.update(len(encoded).to_bytes(8, "little"))
            sha.update(encoded)
    return sha.hexdigest()
