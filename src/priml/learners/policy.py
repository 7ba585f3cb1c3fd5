"""The policy: clipped policy-gradient steps on given advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor
from transformers import PreTrainedModel

from priml.batch import Batch, Row, TokenScores, collate
from priml.errors import RunError
from priml.learners.base import PolicyReport
from priml.learners.engine import LanguageEngine, Scorer, Trained
from priml.learners.optimizer import attach_batch_on_error, shuffled_mini_batches
from priml.maths.masking import masked_mean
from priml.maths.policy_loss import (
    Surrogate,
    SurrogateStats,
    aggregate_tokens,
    clipped_surrogate,
    importance_weights,
    kl_k3,
    kl_penalty,
)
from priml.models.forward import MicroBatch
from priml.names import AggregateName, ImportanceLevel, KlEstimatorName, SurrogateName


@dataclass(frozen=True, slots=True)
class Objective:
    """What the policy minimises: a surrogate of the expected advantage, a KL term, an entropy bonus.

    Each is a number per token. All are aggregated alike, and micro-batches add up to the whole.
    """

    clip_low: float
    clip_high: float
    aggregate: AggregateName
    surrogate: SurrogateName | Surrogate = "ppo"
    dual_clip: float | None = None
    constant_length: int | None = None
    """The fixed length of the aggregate of that name."""
    kl_weight: float = 0.0
    kl_estimator: KlEstimatorName = "k2"
    entropy_bonus: float = 0.0
    importance_level: ImportanceLevel | None = None
    """How the loss is corrected for a sampler that is another engine; None: not at all."""
    importance_cap: float = 2.0

    def denominator(self, lengths_b: Tensor) -> float:
        """What the sum over a mini-batch with these response lengths is divided by."""
        if self.aggregate == "token_mean":
            return float(lengths_b.sum())
        if self.aggregate == "sequence_mean":
            return float(len(lengths_b))
        assert self.constant_length is not None, "this aggregate has a fixed length"
        return float(len(lengths_b) * self.constant_length)

    def weights(self, old_BT: Tensor, sampler_BT: Tensor | None, mask_BT: Tensor) -> Tensor | None:
        """Importance weight of each token, from the log-probs of trainer and sampler; None without a correction."""
        if self.importance_level is None:
            return None
        assert sampler_BT is not None, "what another engine samples comes with its log-probs"
        return importance_weights(old_BT, sampler_BT, mask_BT, level=self.importance_level, cap=self.importance_cap)

    def loss(
        self,
        micro: MicroBatch,
        logprobs_bt: Tensor,
        entropies_bt: Tensor,
        batch: Batch,
        advantages_BT: Tensor,
        *,
        denominator: float,
    ) -> tuple[Tensor, SurrogateStats]:
        """The micro-batch's share of the mini-batch's loss."""
        old_bt, sampler_BT = micro.take(batch.old_logprobs_BT), batch.sampler_logprobs_BT
        loss, stats = clipped_surrogate(
            logprobs_bt,
            old_bt,
            micro.take(advantages_BT),
            micro.mask_bt,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            aggregate=self.aggregate,
            surrogate=self.surrogate,
            dual_clip=self.dual_clip,
            weights_BT=self.weights(old_bt, None if sampler_BT is None else micro.take(sampler_BT), micro.mask_bt),
            denominator=denominator,
        )
        if self.kl_weight:
            assert batch.initial_logprobs_BT is not None, "the policy scores the batch with both models"
            initial_bt = micro.take(batch.initial_logprobs_BT)
            kl_bt = kl_penalty(logprobs_bt, initial_bt, micro.mask_bt, estimator=self.kl_estimator)
            loss = loss + self.kl_weight * self._aggregated(kl_bt, micro, denominator)
        if self.entropy_bonus:
            loss = loss - self.entropy_bonus * self._aggregated(entropies_bt, micro, denominator)
        return loss, stats

    def _aggregated(self, x_bt: Tensor, micro: MicroBatch, denominator: float) -> Tensor:
        return aggregate_tokens(x_bt, micro.mask_bt, self.aggregate, denominator=denominator)


@dataclass(eq=False, kw_only=True)
class LocalPolicy(Trained[LanguageEngine]):
    """A `Policy` around an engine, on one rank or each of several."""

    mini_batch: int | None
    epochs: int
    temperature: float
    objective: Objective
    seed: int
    initial: Scorer[TokenScores] | None = None
    """The frozen initial policy, for a KL term."""
    skip_truncated: bool = False
    """Responses cut at the token limit have no part in the loss."""
    scores_in_update: bool = False
    """Nothing reads the old log-probs before the update. So the first mini-batch gets them from the forward passes
    that train, in which the policy is still the old one: strict on-policy needs no other passes."""

    def __post_init__(self) -> None:
        assert self.initial is not None or not self.objective.kl_weight, "a KL term needs the initial policy"

    def score(self, batch: Batch) -> Batch:
        """The batch with this policy's scores, unless the update takes them, and with those of the initial policy.

        The trainer recomputes them: the sampler's differ in the last digits.
        """
        if not self.scores_in_update:
            batch = batch.with_old(self.engine.scores(batch, temperature=self.temperature))
        if self.initial is None:
            return batch
        initial = self.initial.scores(batch, temperature=self.temperature)
        return replace(batch, initial_logprobs_BT=initial.logprobs_BT)

    def update(self, batch: Batch, advantages_BT: Tensor) -> tuple[Batch, PolicyReport]:
        """One optimizer step per mini-batch, `epochs` times over the batch. Returns the batch with the scores of the
        policy before the first step.

        Raises:
            NonFiniteError: before the optimizer moved.
            RunError: truncated responses are skipped, and there are no others.
        """
        mini_batches = list(self._mini_batches(batch))
        unscored = mini_batches[0] if batch.old is None else []
        if unscored:
            others = sorted(set(range(len(batch))) - set(unscored))
            batch = batch.with_old(self.engine.scores(batch, others, temperature=self.temperature))
        losses: list[float] = []
        norms: list[float] = []
        stats: list[SurrogateStats] = []
        with attach_batch_on_error(batch, advantages=advantages_BT):
            for rows in mini_batches:
                losses.append(self._accumulate(batch, advantages_BT, rows, stats, scores=bool(unscored) and not losses))
                norms.append(self.engine.step(losses[-1]))
        return batch, self._report(batch, losses, norms, sum(stats[1:], start=stats[0]))

    def logprobs(self, token_ids: Sequence[int]) -> Tensor:
        """Log-probs [t] of the tokens of a text after the first, at temperature 1. A collective, in a process group."""
        row = Row(token_ids[:1], token_ids[1:], outcome=0.0, group=0, step_ends=())
        return self.engine.scores(collate([row], step=0)).logprobs_BT[0]

    def weights(self) -> PreTrainedModel:
        return self.engine.weights()

    def _report(
        self, batch: Batch, losses: Sequence[float], norms: Sequence[float], moved: SurrogateStats
    ) -> PolicyReport:
        assert batch.old is not None, "an update leaves its scores"
        for field in fields(moved):  # those of all ranks
            group = self.engine.process_group
            (group.max_ if field.name == "ratio_max" else group.sum_)(getattr(moved, field.name))
        return PolicyReport(
            loss=sum(losses) / len(losses),
            grad_norm=sum(norms) / len(norms),
            entropy=float(masked_mean(batch.old.entropies_BT, batch.mask_BT)),
            clip_fraction=float(moved.clip_fraction),
            kl_old=float(moved.kl_k3),
            ratio_max=float(moved.ratio_max),
            kl_initial=_kl_initial(batch),
            importance_capped=self._capped(batch),
        )

    def _capped(self, batch: Batch) -> float | None:
        """Share of the tokens whose importance weight is the cap; None without a correction."""
        weights_BT = self.objective.weights(batch.old_logprobs_BT, batch.sampler_logprobs_BT, batch.mask_BT)
        if weights_BT is None:
            return None
        at_cap_BT = weights_BT >= self.objective.importance_cap * (1.0 - 1e-6)  # exp(log(cap)) is not quite cap
        return float(masked_mean(at_cap_BT.float(), batch.mask_BT))

    def _mini_batches(self, batch: Batch) -> Iterator[list[int]]:
        rows = (~batch.truncated_B).nonzero().flatten().tolist() if self.skip_truncated else range(len(batch))
        if not rows:
            raise RunError(
                f"all {len(batch)} responses of the batch were cut at the token limit, and overlong.kind: mask leaves "
                "none to learn from; raise sampling.max_new_tokens, or choose another overlong.kind"
            )
        return shuffled_mini_batches(rows, self.mini_batch, epochs=self.epochs, seed=self.seed, step=batch.step)

    def _accumulate(
        self,
        batch: Batch,
        advantages_BT: Tensor,
        rows: list[int],
        stats: list[SurrogateStats],
        *,
        scores: bool = False,
    ) -> float:
        """The loss of a mini-batch, whose gradient is kept. The statistics of this rank are added to `stats`.

        `scores`: its forward passes also give the batch the old scores of these rows.
        """
        assert batch.old is not None, "there is room for the scores at least"
        old = (batch.old.logprobs_BT, batch.old.entropies_BT)
        denominator = self.objective.denominator(batch.response_lengths_B[rows])

        def loss(micro: MicroBatch, found: tuple[Tensor, Tensor]) -> Tensor:
            if scores:
                for x_bt, old_BT in zip(found, old, strict=True):
                    micro.put(x_bt, old_BT)
            share, micro_stats = self.objective.loss(micro, *found, batch, advantages_BT, denominator=denominator)
            stats.append(micro_stats)
            return share

        total_loss = self.engine.accumulate(batch, rows, loss, temperature=self.temperature)
        for old_BT in old if scores else ():
            rows_bT = old_BT[rows]  # 0 where another rank has scored
            self.engine.process_group.sum_(rows_bT)
            old_BT[rows] = rows_bT
        return total_loss


def _kl_initial(batch: Batch) -> float | None:
    if batch.initial_logprobs_BT is None:
        return None
    return float(masked_mean(kl_k3(batch.old_logprobs_BT, batch.initial_logprobs_BT, batch.mask_BT), batch.mask_BT))
