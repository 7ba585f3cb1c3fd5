"""Settings of the algorithm: advantages, the policy loss, and overlong responses."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from priml.config.base import CustomFunction, NonNegative, Settings, Share, ShortForm
from priml.names import (
    ESTIMATOR_NEEDS,
    NO_DUAL_CLIP,
    AggregateName,
    EstimatorName,
    EstimatorNeeds,
    ImportanceLevel,
    KlEstimatorName,
    PresetName,
    SurrogateName,
)


class Ramp(Settings):
    """A weight that moves linearly, step by step, to its final value."""

    start: NonNegative
    """The weight before the ramp."""
    after: Annotated[int, Field(ge=0)] = 0
    """Steps at `start` before the weight begins to move."""
    steps: PositiveInt
    """Steps from `start` to the final weight."""


class Gate(Settings):
    """The process reward counts as far as the PRM ranks fresh responses (before it learns from them) better than
    chance. `a` is the mean share of right pairs in groups that have right and wrong responses, n their number in the
    last `steps` steps: the factor is 0 where a - 1 / (2 sqrt n) is at most 1/2, 1 from `full` on, linear between."""

    steps: PositiveInt = 8
    """So many steps are looked at together."""
    full: Annotated[float, Field(gt=0.5, le=1.0)] = 0.8
    """Cautious pair accuracy from which on the process reward has all its weight."""


class Advantage(Settings):
    """From outcomes and process rewards to advantages."""

    estimator: EstimatorName | CustomFunction = "rloo"
    """`rloo`: leave-one-out baseline (the paper's main run, Eq. 5); `grpo`: z-scores in the group (Eq. 7); `dr_grpo`:
    the same without the standard deviation (arXiv 2503.20783); `reinforce`: no baseline (Eq. 8); `reinforce_pp`: mean
    and deviation of the whole batch (arXiv 2501.03262; the presets that whiten make `reinforce` the same); `ppo`: GAE
    over a critic; `prime_value`: process rewards as a baseline instead of a reward (section 5.4); or your own function,
    `file.py:name`."""
    preset: PresetName = "priml"
    """Arithmetic of the paper's formulas (`paper`), of the authors' released program, of verl's recipe; or `priml`: the
    authors', with each token paid its own process reward alone (`gamma_process: 0`), twice as much. A published preset
    brings the rest of what was published, where it is not given: `gate: null` and a PRM with `loss: ce`, `reference:
    initial`, `replay: null`. The default is `authors` where not each token
    is paid for itself: with the estimators `ppo` and `prime_value`, another granularity, or a custom PRM."""
    process_weight: NonNegative = 1.0
    """Multiplies the preset's coefficient of the process reward."""
    process_ramp: Ramp | None = None
    """Reach `process_weight` gradually, while the PRM still knows little; null: from the start."""
    gate: Gate | None = Gate()
    """Weigh the process reward by how well the PRM ranks fresh responses; null: trust it from the start, as in the
    paper. The default of a published preset is null."""
    outcome_weight: NonNegative = 1.0
    """Multiplies the preset's coefficient of the outcome."""
    gamma_process: Share | None = None
    """Discount of process rewards; null takes the preset's."""
    gamma_outcome: Share | None = None
    """Discount of the outcome; null takes the preset's."""

    def process_weight_at(self, step: int) -> float:
        """The weight of the process reward in this step, counted from 1."""
        ramp = self.process_ramp
        if ramp is None:
            return self.process_weight
        share = min(max((step - 1 - ramp.after) / ramp.steps, 0.0), 1.0)
        return (1.0 - share) * ramp.start + share * self.process_weight

    @property
    def needs(self) -> EstimatorNeeds:
        """What the estimator needs; of a user's own nothing is known."""
        return ESTIMATOR_NEEDS.get(self.estimator, EstimatorNeeds())

    @model_validator(mode="after")
    def _discounts_mean_something(self) -> Self:
        needs = self.needs
        if (needs.values or needs.token_rewards) and self.preset == "priml" and "preset" in self.model_fields_set:
            raise ValueError(
                f"preset: priml pays each token its own process reward alone, which {self.estimator} cannot use; leave "
                "preset out, or set preset: authors"
            )
        if needs.values and self.gamma_process != self.gamma_outcome:
            raise ValueError(
                f"{self.estimator} has one discount, since its critic values process rewards and outcome together; got "
                f"gamma_process={_or_null(self.gamma_process)}, gamma_outcome={_or_null(self.gamma_outcome)}: "
                "give both the same"
            )
        if needs.token_rewards and self.gamma_process is not None:
            raise ValueError(
                f"{self.estimator} sums the process rewards before a token without discount, got "
                f"gamma_process={self.gamma_process:g}; set gamma_process: null"
            )
        return self


class Kl(Settings):
    """A pull towards the initial policy, in the loss."""

    weight: PositiveFloat
    """Multiplies the divergence (nats per token)."""
    estimator: KlEstimatorName = "k2"
    """`k1`: unbiased value, with the gradient of k2, since its own is noise; `k2`: gradient of KL(policy || initial);
    `k3` (GRPO's): gradient of KL(initial || policy)."""


class Importance(Settings):
    """Truncated importance sampling: the loss of a sampled token is multiplied by trainer probability / sampler
    probability, at most `cap`. It acts only where another engine samples (`sampler.kind: vllm`), or older weights do
    (`sampling.max_staleness`). Otherwise sampler and trainer are one model: the weights would be 1 but for rounding."""

    level: ImportanceLevel = "token"
    """One weight per token; or one per response, the product over its tokens: unbiased, but noisy in long responses."""
    cap: Annotated[float, Field(ge=1.0)] = 2.0
    """The largest weight; lower it when `policy/importance_capped` is high and the loss jumps."""


class Loss(Settings):
    """The policy objective."""

    surrogate: SurrogateName | CustomFunction = "ppo"
    """`ppo`: clipped ratio per token; `gspo`: one ratio per response (arXiv 2507.18071, which clips at 3e-4 and 4e-4);
    `cispo`: the clipped ratio as a weight, so that no token loses its gradient (arXiv 2506.13585, with clip_low 1);
    or your own function, `file.py:name`."""
    clip_low: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped from above at 1 + clip_high; more than clip_low is DAPO's clip-higher (arXiv 2503.14476)."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """A token with a negative advantage loses at most this many times it (arXiv 1912.09729, with 3); null: no bound."""
    aggregate: AggregateName = "sequence_mean"
    """Mean over responses of their token mean (the authors' main run), mean over all tokens, or sum over responses
    times `sampling.max_new_tokens` (Dr. GRPO, arXiv 2503.20783)."""
    kl: Kl | None = None
    """KL penalty against the initial policy, whose frozen weights are kept for it (one copy, shared with the PRM's
    reference where that is the same model); null: none, as in the paper."""
    entropy_bonus: NonNegative = 0.0
    """Weight of the entropy of the policy (nats per token), which is maximised; 0 in the paper."""
    importance: Importance | None = Importance()
    """Correction for the difference between sampler and trainer, in engine or weights; null: none."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.surrogate in NO_DUAL_CLIP and self.dual_clip is not None:
            raise ValueError(f"{self.surrogate} bounds every ratio already and has no dual clip; set dual_clip: null")
        if self.dual_clip is not None and self.dual_clip <= 1.0 + self.clip_high:
            raise ValueError(
                f"dual_clip is a bound beyond the clip, got dual_clip={self.dual_clip:g} with "
                f"1 + clip_high = {1.0 + self.clip_high:g}; raise dual_clip (3 is usual)"
            )
        return self


class KeepOverlong(Settings):
    """A response cut at the token limit counts like any other: its verdict decides."""

    kind: Literal["keep"] = "keep"


class DropOverlong(Settings):
    """A prompt is dropped with all its responses when one of them was cut at the token limit."""

    kind: Literal["drop"]


class MaskOverlong(Settings):
    """Responses cut at the token limit are left out of the policy's loss (DAPO's overlong filtering); they still count
    in baselines, and the PRM still learns from them."""

    kind: Literal["mask"]


class PenalizeOverlong(Settings):
    """Long responses lose a part of their outcome in the advantages (DAPO's soft overlong punishment, arXiv 2503.14476,
    Eq. 13): nothing up to `sampling.max_new_tokens - window`, then linearly more, 1 at the limit. Filter and PRM see
    the outcome as it was."""

    kind: Literal["penalty"]
    window: PositiveInt
    """Length of the slope in tokens (DAPO: 4096 of 20480)."""


Overlong = Annotated[
    KeepOverlong | DropOverlong | MaskOverlong | PenalizeOverlong, Field(discriminator="kind"), ShortForm("keep")
]


def _or_null(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
