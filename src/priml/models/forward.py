"""From a batch to log-probabilities or values: micro-batches by token budget, and the head applied in chunks."""

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

    def put(self, x_bt: Tensor, into_BT: Tensor) -> None:
        """The way back: write a [b, t] result into its place in a [B, T] tensor, without its gradient."""
        into_BT[self.rows_b, : self.mask_bt.shape[1]] = x_bt.detach().to(into_BT)

    def take_rows(self, x_B: Tensor) -> Tensor:
        """The rows of a [B] tensor, moved to this micro-batch's device."""
        return x_B[self.rows_b].to(self.mask_bt.device)


class TokenModel:
    """A causal transformer that says something of each response token."""

    def __init__(self, module: nn.Module, *, device: torch.device, precision: str, micro_batch_tokens: int) -> None:
        self.module: Any = module
        self.device = device
        self.autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self.micro_batch_tokens = micro_batch_tokens

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode for as long as gradients are taken, where it matters: only gradient checkpointing needs it."""
        self.module.train(any(getattr(m, "gradient_checkpointing", False) for m in self.module.modules()))
        try:
            yield
        finally:
            self.module.eval()

    def micro_batches(self, batch: Batch, rows: Sequence[int]) -> Iterator[MicroBatch]:
        """Rows sorted by length and packed under the padded-token budget; at least one row each.

        The plan depends on lengths alone, so two models scoring the same rows run the same shapes: at initialisation
        a PRM and its reference agree to the last bit.
        """
        lengths = (batch.prompt_lengths_B + batch.response_lengths_B).tolist()
        ordered = sorted(rows, key=lambda i: (lengths[i], i))
        start = 0
        while start < len(ordered):
            end = start + 1
            while end < len(ordered) and lengths[ordered[end]] * (end + 1 - start) <= self.micro_batch_tokens:
                end += 1
            yield self._cut(batch, torch.tensor(ordered[start:end]))
            start = end

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _hidden(self, micro: MicroBatch) -> Tensor:
        """Hidden states at the positions whose next token is a response token: all that is known before it."""
        states_blD = self.module.base_model(input_ids=micro.tokens_bl, use_cache=False).last_hidden_state
        return states_blD[micro.predicts_bl]

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


class LanguageModel(TokenModel):
    """A causal language model as priml uses it: tokens in, log-probabilities of the response tokens out."""

    def __init__(self, module: nn.Module, *, device: torch.device, precision: str, micro_batch_tokens: int) -> None:
        super().__init__(module, device=device, precision=precision, micro_batch_tokens=micro_batch_tokens)
        self._head = _Head(module)

    @property
    def vocabulary(self) -> int:
        """Number of output tokens, the unused rows at the end of a padded head included."""
        return self._head.size

    def score(self, micro: MicroBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [b, t] of the response tokens, 0 on padding; differentiable in grad mode."""
        with self._autocast():
            hidden_ND = self._hidden(micro)
            targets_N = micro.tokens_bl[:, 1:][micro.predicts_bl[:, :-1]]
            logprobs_N, entropies_N = self._head(hidden_ND, targets_N, temperature)
        zeros_bt = logprobs_N.new_zeros(micro.mask_bt.shape)
        return zeros_bt.masked_scatter(micro.mask_bt, logprobs_N), zeros_bt.masked_scatter(micro.mask_bt, entropies_N)

    @torch.no_grad()
    def scores(self, batch: Batch, *, temperature: float = 1.0) -> TokenScores:
        """Score a whole batch without gradient; results on the CPU."""
        logprobs_BT, entropies_BT = torch.zeros(batch.mask_BT.shape), torch.zeros(batch.mask_BT.shape)
        for micro in self.micro_batches(batch, range(len(batch))):
            logprobs_bt, entropies_bt = self.score(micro, temperature=temperature)
            micro.put(logprobs_bt, logprobs_BT)
            micro.put(entropies_bt, entropies_BT)
        return TokenScores(logprobs_BT=logprobs_BT, entropies_BT=entropies_BT)


class ValueModel(TokenModel):
    """A causal transformer with one output: tokens in, the value before each response token out."""

    def __init__(self, module: nn.Module, *, device: torch.device, precision: str, micro_batch_tokens: int) -> None:
        super().__init__(module, device=device, precision=precision, micro_batch_tokens=micro_batch_tokens)
        self._head = scalar_head(module)

    def score(self, micro: MicroBatch) -> Tensor:
        """Values [b, t], 0 on padding; differentiable in grad mode. The head works in float32 always."""
        with self._autocast():
            hidden_ND = self._hidden(micro)
        with torch.autocast(self.device.type, enabled=False):
            values_N = self._head(hidden_ND.to(self._head.weight.dtype)).squeeze(-1)
        return values_N.new_zeros(micro.mask_bt.shape).masked_scatter(micro.mask_bt, values_N)

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """Values [B, T] of a whole batch, without gradient, on the CPU."""
        values_BT = torch.zeros(batch.mask_BT.shape)
        for micro in self.micro_batches(batch, range(len(batch))):
            micro.put(self.score(micro), values_BT)
        return values_BT


def scalar_head(module: Any) -> nn.Linear:
    """The projection of a token classifier with one label.

    Raises:
        ModelError: there is none, or it has more than one output.
    """
    heads = [m for m in module.children() if isinstance(m, nn.Linear)]
    if module.base_model is module or len(heads) != 1 or heads[0].out_features != 1:
        raise ModelError(
            f"{type(module).__name__}: no projection to one number over a base model found; "
            "a critic is a token classifier with one label"
        )
    return heads[0]


class _Head:
    """The output projection, read off the module so that logits need never be formed for all tokens at once."""

    def __init__(self, module: Any) -> None:
        head = module.get_output_embeddings()
        if head is None or not hasattr(head, "weight") or module.base_model is module:
            raise ModelError(
                f"{type(module).__name__}: no output projection over a base model found; give a causal language model"
            )
        self._head = head
        config = module.config.get_text_config()
        self._softcap: float | None = _setting(config, "final_logit_softcapping", "logits_soft_cap")
        self._scale = 1.0
        self._verify(module, _logit_scales(config))

    @property
    def size(self) -> int:
        """Rows of the projection."""
        return self._head.weight.shape[0]

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
    def _verify(self, module: Any, scales: Sequence[float]) -> None:
        """Architectures may do more between hidden states and logits than we know: compare once, on three tokens."""
        tokens_bl = torch.tensor([[0, 1, 2]], device=self._head.weight.device)
        hidden_ND = module.base_model(input_ids=tokens_bl, use_cache=False).last_hidden_state[0]
        self._verify_causal(module, tokens_bl, hidden_ND)
        logits_NV = module(input_ids=tokens_bl, use_cache=False).logits[0]
        for self._scale in scales:
            if self._reproduces(hidden_ND, logits_NV):
                return
        raise ModelError(
            f"{type(module).__name__}: its logits are not a plain projection of its hidden states, "
            "so log-probs computed in chunks would be wrong; choose another architecture"
        )

    def _reproduces(self, hidden_ND: Tensor, logits_NV: Tensor) -> bool:
        """Our log-probs of the likeliest and the unlikeliest token are the model's own, to a thousandth of the gap."""
        expected_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)
        likeliest_N, unlikeliest_N = expected_NV.max(-1), expected_NV.min(-1)
        gap = (likeliest_N.values - unlikeliest_N.values).max()
        return all(
            bool(((self(hidden_ND, end_N.indices, 1.0)[0] - end_N.values).abs() <= 1e-3 * gap + 1e-5).all())
            for end_N in (likeliest_N, unlikeliest_N)
        )

    @staticmethod
    def _verify_causal(module: Any, tokens_bl: Tensor, hidden_ND: Tensor) -> None:
        """Padding on the right without a mask is right only where no token sees those after it (BERT does)."""
        shorter_ND = module.base_model(input_ids=tokens_bl[:, :-1], use_cache=False).last_hidden_state[0]
        if not float((hidden_ND[:-1] - shorter_ND).abs().max()) <= 1e-3 * float(shorter_ND.abs().max()):
            raise ModelError(
                f"{type(module).__name__}: a token's hidden state depends on the tokens after it; "
                "give a causal language model"
            )


def _logit_scales(config: Any) -> list[float]:
    """What the logits may be multiplied by. Some architectures divide by the very name by which others multiply."""
    given = (_setting(config, n) for n in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"))
    return [1.0] + [scale for value in given if value for scale in (value, 1.0 / value)]


def _setting(config: Any, *names: str) -> float | None:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
