"""From a batch to log-probabilities or values: micro-batches by token budget, and the head applied in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from priml.batch import Batch, TokenScores
from priml.distributed.process_group import ProcessGroup, balance_by_size
from priml.errors import ModelError
from priml.maths.logprobs import token_logprobs
from priml.models.checkpoint import weights_digest
from priml.models.packing import PackedRows, lay_out, pack_attention, packing_obstacle, shortest_window
from priml.models.rope import check_steady, frequency_switch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_Plan: TypeAlias = list[list[list[int]]]
"""The rows of each micro-batch of each rank."""
_Prompts: TypeAlias = Mapping[int, tuple[int, int]]
"""How each row begins: a number, equal for those that can share their prompt, and how many tokens that has."""
Packing: TypeAlias = Literal["auto", "always", "never"]
"""Whether the rows of a micro-batch are laid end to end without padding (`backend.packing`)."""

_LEAST_SAVED, _TOKENS_PER_CALL = 0.1, 100.0
"""`auto` packs where padding and repeated prompts would be this share of the tokens, and cost more than the calls of
attention that packing adds, one for each length of a micro-batch. A call costs as much as so many tokens of a narrow
model (`benchmarks/packing.py`, on a CPU)."""
_SPARED = 0.75
"""Share of a token's memory that it does not take where it is shared: attention has a copy of it for each row."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A few rows of a batch, cut to their own longest length, on the model's device."""

    rows_b: Tensor
    """Indices into the batch (CPU)."""
    tokens_bl: Tensor
    predicts_bl: Tensor
    """True at positions whose next token is a response token."""
    mask_bt: Tensor
    packed: PackedRows | None = None
    """The rows end to end; None, if the model is to compute padding."""
    switch: int = 0
    """The first tokens of each row, which have a pass of their own (`frequency_switch`); 0: there is one pass."""
    progress: str = ""
    """Which of how many, for messages."""

    def take(self, x_BT: Tensor) -> Tensor:
        """The rows of a response-aligned [B, T] tensor, cut to this micro-batch's length and moved to its device."""
        return x_BT[self.rows_b, : self.mask_bt.shape[1]].to(self.mask_bt.device)

    def put(self, x_bt: Tensor, into_BT: Tensor) -> None:
        """The way back: write a [b, t] result into its place in a [B, T] tensor, without its gradient."""
        into_BT[self.rows_b, : self.mask_bt.shape[1]] = x_bt.detach().to(into_BT)

    def take_rows(self, x_B: Tensor) -> Tensor:
        """The rows of a [B] tensor, moved to this micro-batch's device."""
        return x_B[self.rows_b].to(self.mask_bt.device)


MicroScoresT = TypeVar("MicroScoresT")
ScoresT = TypeVar("ScoresT")


@dataclass(eq=False)
class TokenModel(ABC, Generic[MicroScoresT, ScoresT]):
    """A causal transformer with outputs for each response token: of a micro-batch, and of a batch."""

    module: PreTrainedModel
    device: torch.device
    precision: str
    micro_batch_tokens: int
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    """Each rank works on its share of the rows."""
    packing: Packing = "never"
    full_precision: tuple[nn.Module, ...] = field(default=(), init=False)
    """Parts of the unit that compute in float32."""

    def __post_init__(self) -> None:
        self.unit = self._build_unit()
        """The module with its head. Nothing else is ever called, so a backend may shard it."""
        self.autocast_dtype = torch.bfloat16 if self.precision == "bf16" else None
        config = self.module.config.get_text_config()
        self._switch = frequency_switch(config)
        # How much slower or faster packed rows are on a GPU has not been measured.
        is_wanted = self.packing == "always" or (self.packing == "auto" and self.device.type == "cpu")
        self._can_pack, self.can_share = self._pack_attention() if is_wanted else (False, False)

    @abstractmethod
    def outputs(self, batch: Batch) -> Tensor:
        """What the model says of each trained token of a batch [B, T]: log-probs at temperature 1, or values."""

    @abstractmethod
    def _build_unit(self) -> nn.Module: ...

    @abstractmethod
    def score(self, micro: MicroBatch, *, temperature: float = 1.0) -> MicroScoresT:
        """Outputs [b, t], 0 on padding; differentiable in grad mode."""

    @abstractmethod
    def scores(self, batch: Batch, rows: Sequence[int] | None = None, *, temperature: float = 1.0) -> ScoresT:
        """Outputs [B, T] of these rows (None: of all), 0 elsewhere, without gradient, on the CPU. A collective."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens it reads, the unused embeddings at the end included."""
        embeddings: Any = self.module.get_input_embeddings()
        return embeddings.weight.shape[0]

    def digest(self) -> str:
        """sha256 of the weights. A collective if they are sharded."""
        return weights_digest(self.module)

    def _pack_attention(self) -> tuple[bool, bool]:
        """Make the module ready for packed rows, if it can be. Only the first rank of a process group needs weights.

        Returns whether its rows can be packed, and whether those that begin alike can share their beginning.
        """
        obstacle = "the frequencies of its RoPE depend on the length of a row" if self._switch else None
        obstacle = obstacle or self.process_group.broadcast_from_rank0(lambda: packing_obstacle(self.module))
        can_share = obstacle is None and self.process_group.broadcast_from_rank0(
            lambda: packing_obstacle(self.module, shares=True) is None
        )
        if obstacle is None:
            pack_attention(self.module)
        elif self.packing == "always":
            raise ModelError(
                f"backend.packing: found always, but rows of {type(self.module).__name__} cannot be packed "
                f"({obstacle}); set it to auto or never"
            )
        return obstacle is None, can_share

    @contextmanager
    def training(self) -> Iterator[None]:
        """Train mode inside the block for the blocks that are recomputed, which need it to be so.

        Their parts stay in eval mode. Some draw random numbers in train mode (the routers of Mixtral and Phi-3.5-MoE),
        or change their weights (Gemma 3n).
        """
        recomputed = [m for m in self.module.modules() if getattr(m, "gradient_checkpointing", False)]
        for module in recomputed:
            module.training = True
        try:
            yield
        finally:
            for module in recomputed:
                module.training = False

    def micro_batches(self, batch: Batch, rows: Sequence[int]) -> Iterator[MicroBatch]:
        """This rank's share of the rows, as many at once as the token budget allows; at least one row each.

        The plan depends on lengths alone, so two models scoring the same rows run the same shapes: at initialisation
        a PRM and its reference agree to the last bit. Rows are balanced by tokens over the ranks. A pass over sharded
        weights is a collective, so every rank has as many micro-batches as any other; the last may have no rows.

        Raises:
            ModelError: a row is so long that the model has other frequencies at each of its tokens (`check_steady`).
        """
        lengths = batch.lengths_B.tolist()
        check_steady(self.module, max((lengths[i] for i in rows), default=0))
        plans, prompts = self._plan(batch, rows)
        count = max(len(plan) for plan in plans)
        mine = plans[self.process_group.rank] + [[]] * (count - len(plans[self.process_group.rank]))
        for number, chosen in enumerate(mine, start=1):
            progress = f"micro-batch {number} of {count}"
            micro = self._cut(batch, torch.tensor(chosen), progress) if chosen else self._idle(progress)
            longest = max(lengths[i] for plan in plans for i in chain(*plan[number - 1 : number]))  # of all ranks
            micro = replace(micro, switch=self._switch) if self._switch and longest > self._switch else micro
            if prompts is not None and chosen:
                packed = _laid_out(chosen, lengths, prompts, width=micro.tokens_bl.shape[1])
                micro = replace(micro, packed=packed.to(self.device))
            yield micro

    def count_micro_batches(self, batch: Batch, rows: Sequence[int]) -> int:
        """How many micro-batches these rows are, over all ranks."""
        plans, _ = self._plan(batch, rows)
        return max(len(plan) for plan in plans) * self.process_group.size

    def _plan(self, batch: Batch, rows: Sequence[int]) -> tuple[_Plan, _Prompts | None]:
        """The rows of each micro-batch of each rank, and how they begin, if they are packed. Rows are worked on by
        length; packed ones of a prompt together."""
        lengths = batch.lengths_B.tolist()
        ordered = sorted(rows, key=lambda i: (lengths[i], i))
        balanced = balance_by_size([lengths[i] for i in ordered], self.process_group.size)
        shares = [[ordered[i] for i in share] for share in balanced]
        padded = [self._padded(share, lengths) for share in shares]
        if not self._can_pack:
            return padded, None
        prompts = self._prompts(batch, rows)
        packed = [self._packed(share, lengths, prompts) for share in shares]
        if self.packing == "auto" and not self._pays(padded, packed, lengths, prompts):
            return padded, None
        return packed, prompts

    def _prompts(self, batch: Batch, rows: Sequence[int]) -> _Prompts:
        longest, window = max((int(batch.lengths_B[row]) for row in rows), default=0), shortest_window(self.module)
        if not self.can_share or (window is not None and longest >= window):
            return {row: (row, 0) for row in rows}
        numbers: dict[bytes, int] = {}
        found: dict[int, tuple[int, int]] = {}
        for row in rows:
            length = int(batch.prompt_lengths_B[row])
            written = batch.tokens_BL[row, :length].numpy().tobytes()
            found[row] = (numbers.setdefault(written, len(numbers)), length)
        return found

    def _pays(self, padded: _Plan, packed: _Plan, lengths: Sequence[int], prompts: _Prompts) -> bool:
        """Whether the tokens that packing saves cost more than its calls do. It depends on no weights, which a PRM
        with adapters has more of than its reference: both must run the same shapes."""
        computed = sum(_computed(rows, lengths, prompts) for plan in packed for rows in plan)
        waste = sum(len(rows) * max(lengths[i] for i in rows) for plan in padded for rows in plan) - computed
        if waste < _LEAST_SAVED * computed:
            return False
        calls = sum(len({lengths[i] for i in rows}) for plan in packed for rows in plan)
        width = self.module.config.get_text_config().hidden_size
        arithmetic = 1.0 + (width / 45.0) ** 2  # of a token, over that of a very narrow model: the rest is calls, too
        return waste * arithmetic > _TOKENS_PER_CALL * calls

    def _padded(self, ordered: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Neighbours in micro-batches, whose rows are padded to the last of them."""
        filled: list[list[int]] = []
        for row in ordered:
            if filled and lengths[row] * (len(filled[-1]) + 1) <= self.micro_batch_tokens:
                filled[-1].append(row)
            else:
                filled.append([row])
        return filled

    def _packed(self, ordered: Sequence[int], lengths: Sequence[int], prompts: _Prompts) -> list[list[int]]:
        """The rows of a prompt in one micro-batch, as far as they fit; the rows of a micro-batch by length."""
        filled: list[list[int]] = []
        together: dict[int, list[int]] = {}
        for row in ordered:
            together.setdefault(prompts[row][0], []).append(row)
        tokens, begun = 0.0, set[int]()  # of the last
        for row in chain.from_iterable(together.values()):
            prompt, shared = prompts[row]
            if not filled or tokens + lengths[row] - 1 - _SPARED * shared * (prompt in begun) > self.micro_batch_tokens:
                filled.append([])
                tokens, begun = 0.0, set()
            filled[-1].append(row)
            tokens += lengths[row] - 1 - _SPARED * shared * (prompt in begun)
            begun.add(prompt)
        return [sorted(rows, key=lambda i: (lengths[i], i)) for rows in filled]

    def _run(self, micro: MicroBatch, *more: float) -> Any:
        self.process_group.report_progress(micro.progress)
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return self.unit(micro.tokens_bl, micro.predicts_bl, micro.packed, micro.switch, *more)

    @torch.no_grad()
    def _collect(
        self, batch: Batch, rows: Sequence[int] | None, score: Callable[[MicroBatch], Sequence[Tensor]], count: int
    ) -> list[Tensor]:
        """Each of the `count` outputs of `score` as [B, T], 0 on padding and where the rows are others'."""
        found = [torch.zeros(batch.mask_BT.shape) for _ in range(count)]
        for micro in self.micro_batches(batch, range(len(batch)) if rows is None else rows):
            for x_bt, x_BT in zip(score(micro), found, strict=True):
                micro.put(x_bt, x_BT)
        for x_BT in found:
            self.process_group.sum_(x_BT)
        return found

    def _idle(self, progress: str) -> MicroBatch:
        """No rows: one token goes through the model, and its output is ignored."""
        return MicroBatch(
            rows_b=torch.zeros(0, dtype=torch.long),
            tokens_bl=torch.zeros(1, 1, dtype=torch.long, device=self.device),
            predicts_bl=torch.zeros(1, 1, dtype=torch.bool, device=self.device),
            mask_bt=torch.zeros(0, 1, dtype=torch.bool, device=self.device),
            progress=progress,
        )

    def _cut(self, batch: Batch, rows_b: Tensor, progress: str) -> MicroBatch:
        responses_b = batch.response_lengths_B[rows_b]
        length, longest = int(batch.lengths_B[rows_b].max()), int(responses_b.max())
        return MicroBatch(
            rows_b=rows_b,
            tokens_bl=batch.tokens_BL[rows_b, :length].to(self.device, torch.long),
            predicts_bl=pad(batch.loss_mask_BL[rows_b, 1:length], (0, 1)).to(self.device),
            mask_bt=(torch.arange(longest).unsqueeze(0) < responses_b.unsqueeze(1)).to(self.device),
            progress=progress,
        )


class LanguageModel(TokenModel[tuple[Tensor, Tensor], TokenScores]):
    """A causal language model as priml uses it: tokens in, log-probabilities of the response tokens out."""

    def outputs(self, batch: Batch) -> Tensor:
        return self.scores(batch).logprobs_BT

    def _build_unit(self) -> nn.Module:
        return _LogprobUnit(self.module, _Head(self.module, self.process_group))

    def score(self, micro: MicroBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [b, t] of the response tokens, 0 on padding; differentiable in grad mode."""
        logprobs_N, entropies_N = self._run(micro, temperature)
        zeros_bt = logprobs_N.new_zeros(micro.mask_bt.shape)
        return zeros_bt.masked_scatter(micro.mask_bt, logprobs_N), zeros_bt.masked_scatter(micro.mask_bt, entropies_N)

    def scores(self, batch: Batch, rows: Sequence[int] | None = None, *, temperature: float = 1.0) -> TokenScores:
        """Log-probs and entropies, as in the base class."""
        return TokenScores(*self._collect(batch, rows, partial(self.score, temperature=temperature), count=2))


class ValueModel(TokenModel[Tensor, Tensor]):
    """A causal transformer with one output: tokens in, the value before each response token out."""

    def outputs(self, batch: Batch) -> Tensor:
        return self.scores(batch)

    def _build_unit(self) -> nn.Module:
        head: Any = self.module.get_output_embeddings()
        self.full_precision = (head,)
        return _ValueUnit(self.module, head)

    def score(self, micro: MicroBatch, *, temperature: float = 1.0) -> Tensor:
        """Values [b, t], which have no temperature."""
        values_N = self._run(micro)
        return values_N.new_zeros(micro.mask_bt.shape).masked_scatter(micro.mask_bt, values_N)

    def scores(self, batch: Batch, rows: Sequence[int] | None = None, *, temperature: float = 1.0) -> Tensor:
        """Values, as in the base class."""
        return self._collect(batch, rows, lambda micro: [self.score(micro)], count=1)[0]


def _laid_out(rows: Sequence[int], lengths: Sequence[int], prompts: _Prompts, *, width: int) -> PackedRows:
    origins: dict[int, int] = {}
    shared: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        prompt, tokens = prompts[row]
        shared.append((origins[prompt], tokens) if prompt in origins else (i, 0))
        origins.setdefault(prompt, i)
    return lay_out(width, [lengths[row] - 1 for row in rows], shared)


def _computed(rows: Sequence[int], lengths: Sequence[int], prompts: _Prompts) -> int:
    """Tokens of packed rows that are computed: each prompt once, and no last token, which predicts nothing."""
    begun = dict(prompts[row] for row in rows)
    return sum(begun.values()) + sum(lengths[row] - 1 - prompts[row][1] for row in rows)


def _hidden(
    module: PreTrainedModel, tokens_bl: Tensor, predicts_bl: Tensor, packed: PackedRows | None, switch: int
) -> Tensor:
    """Hidden states [N, D] at the positions whose next token is a response token."""
    if packed is not None:
        return packed.hidden(module, tokens_bl, predicts_bl)
    hidden_blD = module.base_model(input_ids=tokens_bl, use_cache=False).last_hidden_state
    if switch:
        early_bsD = module.base_model(input_ids=tokens_bl[:, :switch], use_cache=False).last_hidden_state
        hidden_blD = torch.cat([early_bsD, hidden_blD[:, switch:]], dim=1)
    return hidden_blD[predicts_bl]


class _LogprobUnit(nn.Module):
    """A language model from tokens to log-probs and entropies of those that are predicted.

    Sharded weights are whole only while the forward of their module runs, so the head is read inside one.
    """

    def __init__(self, module: PreTrainedModel, head: _Head) -> None:
        super().__init__()
        self.module = module
        self._head = head

    def forward(
        self, tokens_bl: Tensor, predicts_bl: Tensor, packed: PackedRows | None, switch: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        targets_N = tokens_bl[:, 1:][predicts_bl[:, :-1]]
        return self._head(_hidden(self.module, tokens_bl, predicts_bl, packed, switch), targets_N, temperature)


class _ValueUnit(nn.Module):
    """A model with one output from tokens to values. The head works in float32 always."""

    def __init__(self, module: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.module = module
        self.head = head

    def forward(self, tokens_bl: Tensor, predicts_bl: Tensor, packed: PackedRows | None, switch: int) -> Tensor:
        hidden_ND = _hidden(self.module, tokens_bl, predicts_bl, packed, switch)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return self.head(hidden_ND.to(self.head.weight.dtype)).squeeze(-1)


class _Head:
    """The output projection, read off the module so that logits need never be formed for all tokens at once."""

    def __init__(self, module: PreTrainedModel, process_group: ProcessGroup) -> None:
        """Only the first rank of a process group needs weights yet."""
        head: Any = module.get_output_embeddings()
        if head is None or not hasattr(head, "weight") or module.base_model is module:
            raise ModelError(
                f"{type(module).__name__}: no output projection over a base model found; give a causal language model"
            )
        self._projection = head
        config = module.config.get_text_config()
        self._softcap: float | None = _setting(config, "final_logit_softcapping", "logits_soft_cap")
        self._scale = 1.0
        self._scale = process_group.broadcast_from_rank0(lambda: self._verified_scale(module, _logit_scales(config)))

    def __call__(self, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            hidden_ND,
            self.weight,
            targets_N,
            head_bias_V=getattr(self._projection, "bias", None),
            temperature=temperature,
            softcap=self._softcap,
            logit_scale=self._scale,
        )

    @property
    def weight(self) -> Tensor:
        return self._projection.weight

    @torch.no_grad()
    def _verified_scale(self, module: PreTrainedModel, scales: Sequence[float]) -> float:
        """Architectures may do more between hidden states and logits than we know: compare once, on three tokens."""
        tokens_bl = torch.tensor([[0, 1, 2]], device=self.weight.device)
        hidden_ND = module.base_model(input_ids=tokens_bl, use_cache=False).last_hidden_state[0]
        self._verify_causal(module, tokens_bl, hidden_ND)
        logits_NV = module(input_ids=tokens_bl, use_cache=False).logits[0]
        for self._scale in scales:
            if self._reproduces(hidden_ND, logits_NV):
                return self._scale
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
    def _verify_causal(module: PreTrainedModel, tokens_bl: Tensor, hidden_ND: Tensor) -> None:
        """Padding on the right without a mask is right only where no token sees those after it (BERT does)."""
        shorter_ND = module.base_model(input_ids=tokens_bl[:, :-1], use_cache=False).last_hidden_state[0]
        if not float((hidden_ND[:-1] - shorter_ND).abs().max()) <= 1e-3 * float(shorter_ND.abs().max()):
            raise ModelError(
                f"{type(module).__name__}: a token's hidden state depends on the tokens after it; "
                "give a causal language model"
            )


def _logit_scales(config: PreTrainedConfig) -> list[float]:
    """What the logits may be multiplied by. Some architectures divide by the very name by which others multiply."""
    given = (_setting(config, n) for n in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"))
    return [1.0] + [scale for value in given if value for scale in (value, 1.0 / value)]


def _setting(config: PreTrainedConfig, *names: str) -> float | None:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
