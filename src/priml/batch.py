"""Groups as padded tensors.

Legend of shape letters, used in names throughout:
    B  responses (rows)      T  trained tokens, padded       L  all tokens, padded
    N  selected tokens       V  vocabulary                   D  hidden width
Trained tokens are those that the policy sampled. Prompts and observations stand in L and not in T. So what is computed
of a response in T is the same with and without observations between its turns, and no mask over T has holes.
Rows carry the integer id of their group; the rows of a group need not be neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model says of the trained tokens of a batch; 0 on padding. float32, on the CPU."""

    logprobs_BT: Tensor
    """Log-probability of each token, in nats."""
    entropies_BT: Tensor
    """Entropy of the distribution each token was drawn from, in nats."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The kept responses of one training step. Tensors live on the CPU; models move what they need."""

    step: int
    tokens_BL: Tensor
    """int32. Prompt directly followed by all turns and observations, right-padded with 0: causal models need no
    attention mask for that."""
    loss_mask_BL: Tensor
    """True on the trained tokens. The first of row b is the first of row b in T, and so on."""
    lengths_B: Tensor
    """All tokens of a row."""
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    """Trained tokens of a row, EOS included."""
    outcomes_B: Tensor
    """Verifier outcomes in [0, 1], float32."""
    groups_B: Tensor
    """Which prompt each response answers."""
    step_ends: tuple[NDArray[np.int32], ...]
    """Per response, the indices of the trained tokens that end a step (the last one always does)."""
    truncated_B: Tensor
    """True for responses that were cut at the token limit."""
    old: TokenScores | None = None
    """The policy's scores before its update, at the sampling temperature; None until the policy has been asked."""
    initial_logprobs_BT: Tensor | None = None
    """Log-probs of the policy as it was at the start of the run; None unless the loss has a KL term."""
    values_BT: Tensor | None = None
    """The critic's value before each token, before its update; None without a critic."""
    sampler_logprobs_BT: Tensor | None = None
    """Log-probs of the engine that sampled the tokens, at the sampling temperature; None when it is not known."""
    turn_rewards_BT: Tensor | None = None
    """What environments paid, at the last token of each turn; None: nothing in the whole batch."""
    weight_versions_BT: Tensor | None = None
    """int32. The version of the policy that sampled each token, 0 on padding; None when it is not known."""

    def __len__(self) -> int:
        return len(self.outcomes_B)

    @property
    def mask_BT(self) -> Tensor:
        """True on trained tokens, False on padding."""
        longest = int(self.response_lengths_B.max())
        return torch.arange(longest).unsqueeze(0) < self.response_lengths_B.unsqueeze(1)

    @property
    def old_logprobs_BT(self) -> Tensor:
        """Log-probs of the policy that produced the batch."""
        assert self.old is not None, "the policy has not scored this batch yet"
        return self.old.logprobs_BT

    def with_old(self, scores: TokenScores) -> Batch:
        """The same batch, with the rollout policy's scores."""
        return replace(self, old=scores)


@dataclass(frozen=True, slots=True)
class Row:
    """One response on its way into a batch."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int] | NDArray[np.int32]
    """All tokens after the prompt, observations included."""
    outcome: float
    group: int
    step_ends: Sequence[int] | NDArray[np.int32]
    """Indices among the trained tokens."""
    truncated: bool = False
    sampler_logprobs: Sequence[float] | NDArray[np.float32] | None = None
    """One for each trained token."""
    is_trained: NDArray[np.bool_] | None = None
    """Which of `response_ids` the policy sampled. None: all."""
    weight_versions: NDArray[np.int32] | None = None
    """One for each trained token."""
    turn_rewards: NDArray[np.float32] | None = None
    """One for each trained token."""

    @property
    def length(self) -> int:
        """All tokens."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def num_trained(self) -> int:
        return len(self.response_ids) if self.is_trained is None else int(self.is_trained.sum())


def collate(rows: Sequence[Row], *, step: int) -> Batch:
    """Pad rows into one batch, in the order given."""
    assert rows, "a batch needs at least one response"
    assert all(len(row.prompt_ids) > 0 for row in rows), "the first response token is predicted from a prompt token"
    assert all(row.num_trained > 0 for row in rows), "a response has at least one token that the policy sampled"
    tokens_BL = np.zeros((len(rows), max(row.length for row in rows)), dtype=np.int32)
    loss_mask_BL = np.zeros(tokens_BL.shape, dtype=np.bool_)
    for row, tokens_L, loss_mask_L in zip(rows, tokens_BL, loss_mask_BL, strict=True):
        start, end = len(row.prompt_ids), row.length
        tokens_L[:start], tokens_L[start:end] = row.prompt_ids, row.response_ids
        loss_mask_L[start:end] = True if row.is_trained is None else row.is_trained
    return Batch(
        step=step,
        tokens_BL=torch.as_tensor(tokens_BL),
        loss_mask_BL=torch.as_tensor(loss_mask_BL),
        lengths_B=torch.tensor([row.length for row in rows]),
        prompt_lengths_B=torch.tensor([len(row.prompt_ids) for row in rows]),
        response_lengths_B=torch.tensor([row.num_trained for row in rows]),
        outcomes_B=torch.tensor([row.outcome for row in rows], dtype=torch.float32),
        groups_B=torch.tensor([row.group for row in rows]),
        step_ends=tuple(np.asarray(row.step_ends, dtype=np.int32) for row in rows),
        truncated_B=torch.tensor([row.truncated for row in rows]),
        sampler_logprobs_BT=_padded([row.sampler_logprobs for row in rows], np.float32),
        turn_rewards_BT=_padded([row.turn_rewards for row in rows], np.float32),
        weight_versions_BT=_padded([row.weight_versions for row in rows], np.int32),
    )


def batches_by_length(rows: Sequence[Row], size: int) -> Iterator[tuple[list[int], Batch]]:
    """All rows in batches of `size`, each with the indices of its rows. Rows of similar length share a batch."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].length, i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, collate([rows[i] for i in chosen], step=0)


def _padded(rows: Sequence[Sequence[float] | NDArray[Any] | None], dtype: type[np.generic]) -> Tensor | None:
    """[B, T], 0 on padding; None if a row is not known."""
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return None
    padded_BT = np.zeros((len(rows), max(map(len, known))), dtype=dtype)
    for values, padded_T in zip(known, padded_BT, strict=True):
        padded_T[: len(values)] = values
    return torch.as_tensor(padded_BT)
