"""Log-probabilities and entropies of tokens straight from hidden states, without ever holding the logits of a batch.

Logits of shape [tokens, vocabulary] are the largest tensor of a training step: 30,000 tokens of a 152k vocabulary in
float32 are 18 GB. Here some hundred tokens at a time are multiplied with the output head and reduced at once, and
multiplied again in the backward pass. Not `torch.nn.functional.linear_cross_entropy`: see docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

MAX_CHUNK_TOKENS = 1024
MAX_CHUNK_LOGITS = 2**25


def token_logprobs(
    hidden_ND: Tensor,
    head_weight_VD: Tensor,
    targets_N: Tensor,
    *,
    head_bias_V: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and entropy of the distribution it was taken from, both in nats.

    The distribution is the softmax of `softcap * tanh(logit_scale * (h W^T + b) / softcap) / temperature`, without the
    cap when `softcap` is None. Both results are differentiable with respect to hidden states, weight and bias; the
    values are the same to the last bit with and without gradients. Logits must be finite.

    The matrix product runs in the dtype of the inputs (under autocast, in autocast's). Everything after it, the results
    and the sum of the head's gradient are float32 (float64 for float64 inputs).

    Args:
        hidden_ND: Last hidden states of the valid tokens.
        targets_N: Index in the vocabulary of the token that follows each hidden state.
        chunk_tokens: Tokens whose logits exist at one time; None: 1024, or fewer where the vocabulary is large
            (about 2^25 logits).

    Raises:
        ValueError: if temperature, softcap or chunk_tokens is not positive.
    """
    for name, value in (("temperature", temperature), ("softcap", softcap), ("chunk_tokens", chunk_tokens)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: need a number above 0")
    vocabulary = head_weight_VD.shape[0]
    head = _Head(
        matmul_dtype=_matmul_dtype(hidden_ND),
        temperature=temperature,
        softcap=softcap,
        logit_scale=logit_scale,
        chunk_tokens=chunk_tokens or max(1, min(MAX_CHUNK_TOKENS, MAX_CHUNK_LOGITS // vocabulary)),
    )
    return cast(
        tuple[Tensor, Tensor],
        _TokenLogprobs.apply(hidden_ND, head_weight_VD, head_bias_V, targets_N, head),  # pyright: ignore[reportUnknownMemberType]
    )


@dataclass(frozen=True, slots=True)
class _Head:
    """How hidden states become logits, and how many at a time."""

    matmul_dtype: torch.dtype
    temperature: float
    softcap: float | None
    logit_scale: float
    chunk_tokens: int

    @property
    def float_dtype(self) -> torch.dtype:
        """At least float32: a log-softmax over a large vocabulary in bfloat16 has two good digits."""
        return torch.promote_types(self.matmul_dtype, torch.float32)

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        logits_CV = linear(hidden_CD, weight_VD, bias_V).to(self.float_dtype)
        if self.softcap is None:
            scale = self.logit_scale / self.temperature
            return logits_CV if scale == 1.0 else logits_CV.mul_(scale)
        logits_CV.mul_(self.logit_scale / self.softcap).tanh_()
        return logits_CV.mul_(self.softcap / self.temperature)

    def slope(self, logits_CV: Tensor) -> Tensor | float:
        """Derivative of a logit with respect to `h W^T + b`."""
        scale = self.logit_scale / self.temperature
        if self.softcap is None:
            return scale
        tanh_CV = logits_CV * (self.temperature / self.softcap)
        return tanh_CV.square_().neg_().add_(1.0).mul_(scale)


class _TokenLogprobs(torch.autograd.Function):
    """Chunk by chunk. What outlives a chunk has no vocabulary axis, or no token axis."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: _Head
    ) -> tuple[Tensor, Tensor]:
        num_tokens = hidden_ND.shape[0]
        logprobs_N = hidden_ND.new_empty(num_tokens, dtype=head.float_dtype)
        entropies_N = torch.empty_like(logprobs_N)
        normalisers_N = torch.empty_like(logprobs_N)
        hidden_cast_ND, weight_cast_VD, bias_cast_V = _cast(head.matmul_dtype, hidden_ND, weight_VD, bias_V)
        for start in range(0, num_tokens, head.chunk_tokens):
            chunk = slice(start, start + head.chunk_tokens)
            logits_CV = head.logits(hidden_cast_ND[chunk], weight_cast_VD, bias_cast_V)
            normalisers_N[chunk] = logits_CV.logsumexp(1)
            logits_CV.sub_(normalisers_N[chunk, None])  # log-probabilities of the whole vocabulary, from here on
            logprobs_N[chunk] = logits_CV.gather(1, targets_N[chunk, None]).squeeze(1)
            entropies_N[chunk] = logits_CV.exp().mul_(logits_CV).sum(1).neg_()
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normalisers_N, entropies_N)
        ctx.head = head
        ctx.set_materialize_grads(False)
        return logprobs_N, entropies_N

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropies_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if grad_logprobs_N is None and grad_entropies_N is None:
            return None, None, None, None, None
        hidden_ND, weight_VD, bias_V, targets_N, normalisers_N, entropies_N = cast(
            tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor], ctx.saved_tensors
        )
        head = cast(_Head, ctx.head)
        wants_hidden, wants_weight, wants_bias = cast(tuple[bool, ...], ctx.needs_input_grad)[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=head.float_dtype) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=head.float_dtype) if bias_V is not None and wants_bias else None

        # Whether `backward()` is called inside or outside of autocast must not change what it computes.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_cast_ND, weight_cast_VD, bias_cast_V = _cast(head.matmul_dtype, hidden_ND, weight_VD, bias_V)
            for start in range(0, hidden_ND.shape[0], head.chunk_tokens):
                chunk = slice(start, start + head.chunk_tokens)
                hidden_CD = hidden_cast_ND[chunk]
                logits_CV = head.logits(hidden_CD, weight_cast_VD, bias_cast_V)
                slope = head.slope(logits_CV)
                log_probs_CV = logits_CV.sub_(normalisers_N[chunk, None])
                grad_CV = log_probs_CV.exp()
                # With p the probabilities, H the entropy and t the target:
                # d logprob / d logits = onehot(t) - p,  d H / d logits = -p (log p + H).
                if grad_entropies_N is not None:
                    weighted_CV = log_probs_CV.add_(entropies_N[chunk, None]).mul_(grad_entropies_N[chunk, None])
                    if grad_logprobs_N is not None:
                        weighted_CV.add_(grad_logprobs_N[chunk, None])
                    grad_CV.mul_(weighted_CV.neg_())
                elif grad_logprobs_N is not None:
                    grad_CV.mul_(grad_logprobs_N[chunk, None].neg())
                if grad_logprobs_N is not None:
                    grad_CV.scatter_add_(1, targets_N[chunk, None], grad_logprobs_N[chunk, None])
                grad_CV.mul_(slope)

                if grad_bias_V is not None:
                    grad_bias_V.add_(grad_CV.sum(0))
                grad_cast_CV = grad_CV.to(head.matmul_dtype)
                if grad_hidden_ND is not None:
                    grad_hidden_ND[chunk] = grad_cast_CV @ weight_cast_VD
                if grad_weight_VD is not None and grad_weight_VD.dtype == grad_cast_CV.dtype:
                    grad_weight_VD.addmm_(grad_cast_CV.t(), hidden_CD)  # without a temporary
                elif grad_weight_VD is not None:
                    grad_weight_VD.add_(grad_cast_CV.t() @ hidden_CD)

        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
        )


def _matmul_dtype(hidden_ND: Tensor) -> torch.dtype:
    """What `linear` would compute in here: autocast lowers everything but float64."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device) and hidden_ND.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_ND.dtype


def _cast(
    dtype: torch.dtype, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return hidden_ND.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
