"""Groups as padded tensors.

Legend of shape letters, used in names throughout:
    B  responses (rows)      T  response tokens, padded      L  prompt and response tokens, padded
    N  selected tokens       V  vocabulary                   D  hidden width
Rows carry the integer id of their group; the rows of a group need not be neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model says of the tokens of a batch, aligned with the response; 0 on padding. float32, on the CPU."""

    logprobs_BT: Tensor
    """Log-probability of each response token, in nats."""
    entropies_BT: Tensor
    """Entropy of the distribution each token was drawn from, in nats."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The kept responses of one training step. Tensors live on the CPU; models move what they need."""

    step: int
    tokens_BL: Tensor
    """int32. Prompt directly followed by response, right-padded with 0: causal models need no attention mask for that.
    """
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    """Response tokens, EOS included."""
    outcomes_B: Tensor
    """Verifier outcomes in [0, 1], float32."""
    groups_B: Tensor
    """Which prompt each response answers."""
    step_ends: tuple[NDArray[np.int32], ...]
    """Per response, the token indices that end a step (the last token always does)."""
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

    def __len__(self) -> int:
        return len(self.outcomes_B)

    @property
    def mask_BT(self) -> Tensor:
        """True on response tokens."""
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
    outcome: float
    group: int
    step_ends: Sequence[int] | NDArray[np.int32]
    truncated: bool = False
    sampler_logprobs: Sequence[float] | NDArray[np.float32] | None = None


def collate(rows: Sequence[Row], *, step: int) -> Batch:
    """Pad rows into one batch, in the order given."""
    assert rows, "a batch needs at least one response"
    assert all(len(row.prompt_ids) > 0 for row in rows), "the first response token is predicted from a prompt token"
    assert all(len(row.response_ids) > 0 for row in rows), "a response has at least one token"
    tokens_BL = np.zeros((len(rows), max(len(r.prompt_ids) + len(r.response_ids) for r in rows)), dtype=np.int32)
    for row, tokens_L in zip(rows, tokens_BL, strict=True):
        start, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
        tokens_L[:start], tokens_L[start:end] = row.prompt_ids, row.response_ids
    return Batch(
        step=step,
        tokens_BL=torch.as_tensor(tokens_BL),
        prompt_lengths_B=torch.tensor([len(r.prompt_ids) for r in rows]),
        response_lengths_B=torch.tensor([len(r.response_ids) for r in rows]),
        outcomes_B=torch.tensor([r.outcome for r in rows], dtype=torch.float32),
        groups_B=torch.tensor([r.group for r in rows]),
        step_ends=tuple(np.asarray(r.step_ends, dtype=np.int32) for r in rows),
        truncated_B=torch.tensor([r.truncated for r in rows]),
        sampler_logprobs_BT=_sampler_logprobs(rows),
    )


def batches_by_length(rows: Sequence[Row], size: int) -> Iterator[tuple[list[int], Batch]]:
    """All rows in batches of `size`, each with the indices of its rows. Rows of similar length share a batch."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prompt_ids) + len(rows[i].response_ids), i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, collate([rows[i] for i in chosen], step=0)


def _sampler_logprobs(rows: Sequence[Row]) -> Tensor | None:
    known = [row.sampler_logprobs for row in rows if row.sampler_logprobs is not None]
    if len(known) < len(rows):
        return None
    padded_BT = np.zeros((len(rows), max(len(row.response_ids) for row in rows)), dtype=np.float32)
    for logprobs, padded_T in zip(known, padded_BT, strict=True):
        padded_T[: len(logprobs)] = logprobs
    return torch.as_tensor(padded_BT)
