"""From a batch to log-probabilities: micro-batches by token budget, and the head applied in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from priml.batch import Batch, TokenScores
from priml.errors import ModelError
from priml.maths.logprobs import token_logprobs


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A few rows of a batch, cut to their own longest length, on the model's device."""

    rows_b: Tensor
    """Indices into the batch (CPU)."""
    tokens_bl: Tensor
    predicts_bl: Tensor
    """True at positions whose next token is a response token."""
    mask_bt: Tensor

    def take(self, x_BT: Tensor) -> Tensor:
        """The rows of a response-aligned [B, T] tensor, cut to this micro-batch's length and moved to its device."""
        return x_BT[self.rows_b, : self.mask_bt.shape[1]].to(self.mask_bt.device)

    def take_rows(self, x_B: Tensor) -> Tensor:
        """The rows of a [B] tensor, moved to this micro-batch's device."""
        return x_B[self.rows_b].to(self.mask_bt.device)


class LanguageModel:
    """A causal language model as priml uses it: tokens in, log-probabilities of the response tokens out."""

    def __init__(self, module: nn.Module, *, device: torch.device, precision: str, micro_batch_tokens: int) -> None:
        self.module: Any = module
        self.device = device
        self.autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self.micro_batch_tokens = micro_batch_tokens
        self._head = _Head(module)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode while gradients are taken. Dropout is off anyway; gradient checkpointing only acts in it."""
        self.module.train()
        try:
            yield
        finally:
            self.module.eval()

    def micro_batches(self, batch: Batch, rows: Sequence[int]) -> Iterator[MicroBatch]:
        """Rows sorted by length and packed under the padded-token budget; at least one row each.

        The plan depends on lengths alone, so two models scoring the same rows run the same shapes: at initialisation
        a PRM and its reference agree to the last bit.
        """
        lengths_B = batch.prompt_lengths_B + batch.response_lengths_B
        ordered = sorted(rows, key=lambda i: (int(lengths_B[i]), i))
        start = 0
        while start < len(ordered):
            end = start + 1
            while end < len(ordered) and int(lengths_B[ordered[end]]) * (end + 1 - start) <= self.micro_batch_tokens:
                end += 1
            yield self._cut(batch, torch.tensor(ordered[start:end]))
            start = end

    def score(self, micro: MicroBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [b, t] of the response tokens, 0 on padding; differentiable in grad mode."""
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            hidden_blD = self.module.base_model(input_ids=micro.tokens_bl, use_cache=False).last_hidden_state
            hidden_ND = hidden_blD[micro.predicts_bl]
            targets_N = micro.tokens_bl[:, 1:][micro.predicts_bl[:, :-1]]
            logprobs_N, entropies_N = self._head(hidden_ND, targets_N, temperature)
        shape = micro.mask_bt.shape
        logprobs_bt = torch.zeros(shape, device=self.device).masked_scatter(micro.mask_bt, logprobs_N)
        entropies_bt = torch.zeros(shape, device=self.device).masked_scatter(micro.mask_bt, entropies_N)
        return logprobs_bt, entropies_bt

    @torch.no_grad()
    def scores(self, batch: Batch, *, temperature: float = 1.0) -> TokenScores:
        """Score a whole batch without gradient; results on the CPU."""
        logprobs_BT = torch.zeros(batch.mask_BT.shape)
        entropies_BT = torch.zeros(batch.mask_BT.shape)
        for micro in self.micro_batches(batch, range(len(batch))):
            logprobs_bt, entropies_bt = self.score(micro, temperature=temperature)
            logprobs_BT[micro.rows_b, : logprobs_bt.shape[1]] = logprobs_bt.cpu()
            entropies_BT[micro.rows_b, : entropies_bt.shape[1]] = entropies_bt.cpu()
        return TokenScores(logprobs_BT=logprobs_BT, entropies_BT=entropies_BT)

    def _cut(self, batch: Batch, rows_b: Tensor) -> MicroBatch:
        prompts_b, responses_b = batch.prompt_lengths_B[rows_b], batch.response_lengths_B[rows_b]
        length, longest = int((prompts_b + responses_b).max()), int(responses_b.max())
        position_l = torch.arange(length).unsqueeze(0)
        first_b, last_b = prompts_b.unsqueeze(1) - 1, (prompts_b + responses_b).unsqueeze(1) - 1
        return MicroBatch(
            rows_b=rows_b,
            tokens_bl=batch.tokens_BL[rows_b, :length].to(self.device),
            predicts_bl=((position_l >= first_b) & (position_l < last_b)).to(self.device),
            mask_bt=(torch.arange(longest).unsqueeze(0) < responses_b.unsqueeze(1)).to(self.device),
        )


class _Head:
    """The output projection, read off the module so that logits need never be formed for all tokens at once."""

    def __init__(self, module: Any) -> None:
        head = module.get_output_embeddings()
        if head is None or not hasattr(head, "weight"):
            raise ModelError(f"{type(module).__name__}: no output embeddings found; a causal language model is needed")
        self._head = head
        config = module.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies logits by logit_scale, Granite divides them by logits_scaling
        self._scale: float = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._verify(module)

    def __call__(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            hidden_ND,
            self._head.weight,
            targets_N,
            head_bias_V=getattr(self._head, "bias", None),
            temperature=temperature,
            softcap=self._softcap,
            logit_scale=self._scale,
        )

    @torch.no_grad()
    def _verify(self, module: Any) -> None:
        """Architectures may do more between hidden states and logits than we know: compare once, on three tokens."""
        tokens_bl = torch.tensor([[0, 1, 2]], device=self._head.weight.device)
        hidden_ND = module.base_model(input_ids=tokens_bl, use_cache=False).last_hidden_state[0]
        expected_NV = module(input_ids=tokens_bl, use_cache=False).logits[0].float().log_softmax(-1)
        ours_N, _ = self(hidden_ND, expected_NV.argmax(-1), 1.0)
        if not torch.allclose(ours_N, expected_NV.max(-1).values, atol=1e-3):
            raise ModelError(
                f"{type(module).__name__}: its logits are not a plain projection of its hidden states, "
                "so log-probs computed in chunks would be wrong; this architecture is not supported"
            )
