"""The parts of settings files that have no file of their own. Defaults are the paper's main run (arXiv 2502.01456)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, field_validator, model_validator

from priml.config.base import Settings, Share
from priml.config.data import Source

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


# --- models ------------------------------------------------------------------------------------------------------


class Optimizer(Settings):
    """AdamW. A class for each of its places: there, giving the learning rate alone keeps the other defaults."""

    lr: PositiveFloat
    """Learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam moment decay rates."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""


class PolicyOptimizer(Optimizer):
    """AdamW for the policy."""

    lr: PositiveFloat = 5.0e-7
    """Learning rate, constant (the paper uses no warm-up in RL)."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""


class PrmOptimizer(Optimizer):
    """AdamW for the process reward model."""

    lr: PositiveFloat = 1.0e-6
    """Learning rate, constant."""
    max_grad_norm: PositiveFloat = 10.0
    """Gradients are scaled down to this global norm."""


class CriticOptimizer(Optimizer):
    """AdamW for the critic."""

    lr: PositiveFloat = 1.0e-5
    """Learning rate, constant; a new head has everything to learn."""


class SftOptimizer(Optimizer):
    """AdamW for the supervised warm start."""

    lr: PositiveFloat = 1.0e-5
    """Peak learning rate."""


class Lora(Settings):
    """Low-rank adapters (the `lora` extra): the weights stay as they are, and small matrices beside them learn."""

    rank: PositiveInt = 16
    """Rank of each adapter; more can learn more, and costs more memory."""
    alpha: PositiveFloat = 32.0
    """Adapters count alpha / rank times."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers have one: all linear ones but the head, or names such as [q_proj, v_proj]."""
    export: Literal["merged", "adapter"] = "merged"
    """What the run leaves: whole weights with the adapters added, or the adapters alone, in peft's format."""


class Policy(Settings):
    """The language model being trained."""

    model: str
    """A Hugging Face folder or Hub id: the SFT (or base) checkpoint."""
    optimizer: PolicyOptimizer = PolicyOptimizer()
    """The policy's optimizer."""
    mini_batch: PositiveInt | None = 256
    """Responses per optimizer step; null takes the whole batch in one step."""
    epochs: PositiveInt = 1
    """Passes over each batch."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: Lora | None = None
    """Train adapters instead of the weights; `lora: {}` takes the defaults. Wants a learning rate 10 to 100 times
    that of full training."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""


class Prm(Settings):
    """The implicit process reward model: beta * (log pi_prm - log pi_ref) per token, trained online on outcomes."""

    init: str = "initial"
    """`initial`: the policy's initial checkpoint (the paper's choice), or a Hugging Face folder or Hub id with the
    policy's tokenizer: a base model, another size, or an implicit PRM trained before."""
    reference: str = "initial"
    """What the PRM is compared with. `initial`: the frozen weights it starts from; `policy`: the rollout policy's
    log-probs of this step (no third model); or a folder or Hub id: for an `init` that was trained before, the model it
    was trained against, or it would have to begin again from zero rewards."""
    forward: Literal["single", "double", "frozen"] = "single"
    """`single`: rewards come from the very passes that train the PRM; `double`: the batch is scored again after the
    update; `frozen`: the PRM is never updated (an ablation: it gets over-optimised; against its own initial weights
    all its rewards are 0)."""
    loss: Literal["ce", "pairwise", "detached"] = "ce"
    """`ce`: cross-entropy on outcomes (the paper's); `pairwise`: right against wrong inside each group (DPO), which
    cancels the prompt's constant; `detached`: each response against the constant mean score of its rivals (verl)."""
    beta: PositiveFloat | Literal["auto"] = 0.05
    """Reward scale. `auto`: 50 / mean response length of the first training batch, then fixed for the run."""
    granularity: Literal["token", "step", "whole"] = "token"
    """Where rewards are paid: at every token, at the end of each step, or once at the end of the response."""
    step_pattern: str = r"\n"
    """Regular expression whose match ends a step."""
    optimizer: PrmOptimizer = PrmOptimizer()
    """The PRM's own optimizer."""
    mini_batch: PositiveInt | None = 256
    """Responses per optimizer step (groups are kept whole); null takes the whole batch in one step."""
    epochs: PositiveInt = 1
    """Passes over each batch: the number of updates per step is epochs x batch / mini_batch."""
    lora: Lora | None = None
    """Train adapters instead of the weights, as for the policy. With `init: initial` and a policy that has adapters
    too, policy, PRM and reference share one copy of the weights."""

    @field_validator("step_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class Critic(Settings):
    """The value model of PPO: the policy's architecture with one output per token, learning from returns."""

    init: str = "initial"
    """`initial`: the policy's initial checkpoint with a new head (values start at 0), or a folder or Hub id with the
    policy's tokenizer: another language model, or the `critic/` folder of an earlier run."""
    gae_lambda: Share = 1.0
    """Generalised advantage estimation: 1 sums all rewards to come (the paper's), 0 looks one token ahead."""
    clip: PositiveFloat = 0.5
    """The value loss lets a value move this far from its old one."""
    optimizer: CriticOptimizer = CriticOptimizer()
    """The critic's own optimizer."""
    mini_batch: PositiveInt | None = 256
    """Responses per optimizer step; null takes the whole batch in one step."""
    epochs: PositiveInt = 1
    """Passes over each batch."""


# --- rollouts ----------------------------------------------------------------------------------------------------


class TransformersSampler(Settings):
    """Sampling in this process with transformers models and a key-value cache."""

    kind: Literal["transformers"] = "transformers"
    max_rows: PositiveInt = 1024
    """Responses generated at once; lower it when the key-value cache does not fit."""


class VllmSampler(Settings):
    """Sampling with vLLM (the `vllm` extra): an engine in this process, or in each sampler of `backend.kind: ray`,
    given the policy's weights after every step. Every push is proved: engine and trainer must agree on the log-probs
    of a short text."""

    kind: Literal["vllm"]
    max_rows: PositiveInt = 256
    """Responses generated at once; the engine queues the others. Raise it on a large GPU."""
    kv_cache_gib: PositiveFloat = 4.0
    """Memory kept for keys and values on each device. Raise it when long responses are slow (the engine then puts some
    of them back), lower it when the trainer runs out of memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the engine computes in. `auto`: as the trainer does (`backend.precision`); `float32`, twice the memory, when
    `sampler/mismatch_mean` is too large."""
    tensor_parallel: PositiveInt = 1
    """Devices that one engine is spread over; raise it when the model does not fit on one."""
    enforce_eager: bool = True
    """`false` compiles the model first: minutes at the start, faster steps in a long run."""
    adapters: Literal["merged", "apart"] = "merged"
    """What the engine is given of a policy with `lora`. `merged`: after every step whole weights, adapters added;
    `apart`: adapters alone, which it multiplies beside the weights: next to nothing travels, and each token costs more.
    Choose it where `time/sync` is long."""
    sleep: bool = False
    """Give the engine's memory back while the trainer works (GPUs only): weights wait in the host's memory, keys and
    values are made anew. Turn it on where trainer and engine share devices and do not fit together."""
    probe_bound: PositiveFloat | None = None
    """The run stops when engine and trainer differ by more than this many nats per token after a push; null: 0.001 in
    float32, 0.1 in bfloat16."""


def _kind_or(default: str) -> Callable[[Any], str]:
    """What a part is: its `kind`, or without one what it was before there was a second."""

    def kind(given: Any) -> str:
        if isinstance(given, dict):
            return str(cast(dict[str, Any], given).get("kind", default))
        return str(getattr(given, "kind", default))

    return kind


Sampler = Annotated[
    Annotated[TransformersSampler, Tag("transformers")] | Annotated[VllmSampler, Tag("vllm")],
    Discriminator(_kind_or("transformers")),
]


class Sampling(Settings):
    """How responses are drawn during training."""

    group_size: PositiveInt = 4
    """Responses per prompt (K)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the policy's log-probs are taken at the same temperature."""
    max_new_tokens: PositiveInt = 3072
    """Longest response; longer ones are cut with finish_reason `length`."""


class Batch(Settings):
    """How much one step trains on."""

    prompts: PositiveInt = 256
    """Prompts that survive the filter, per step."""
    draw: PositiveInt | None = None
    """Prompts sampled in the first round of a step; null draws `prompts`. Later rounds follow the pass rate."""


class Filter(Settings):
    """Which prompts are worth learning from: mean outcome inside the band, both ends inclusive (paper section 3.3)."""

    low: Share = 0.2
    """Drop prompts solved less often than this: too hard yet."""
    high: Share = 0.8
    """Drop prompts solved more often than this: nothing left to learn."""
    max_rounds: PositiveInt = 20
    """Sampling rounds per step before the run stops as starved."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"need low <= high, got low={self.low:g}, high={self.high:g}; swap them")
        return self


# --- algorithm ---------------------------------------------------------------------------------------------------


class Ramp(Settings):
    """A weight that moves linearly, step by step, to its final value."""

    start: NonNegative
    """The weight before the ramp."""
    after: Annotated[int, Field(ge=0)] = 0
    """Steps at `start` before the weight begins to move."""
    steps: PositiveInt
    """Steps that the way takes."""


class Advantage(Settings):
    """From outcomes and process rewards to advantages."""

    estimator: Literal["rloo", "grpo", "dr_grpo", "reinforce", "reinforce_pp", "ppo", "prime_value"] = "rloo"
    """`rloo`: leave-one-out baseline (the paper's main run, Eq. 5); `grpo`: z-scores in the group (Eq. 7); `dr_grpo`:
    the same without the standard deviation (arXiv 2503.20783); `reinforce`: no baseline (Eq. 8); `reinforce_pp`: mean
    and deviation of the whole batch (arXiv 2501.03262; the presets that whiten make `reinforce` the same); `ppo`: GAE
    over a critic; `prime_value`: process rewards as a baseline instead of a reward (section 5.4)."""
    preset: Literal["paper", "authors", "verl"] = "authors"
    """Whose arithmetic: the paper's formulas, the authors' released program, or verl's recipe."""
    process_weight: NonNegative = 1.0
    """Multiplies the preset's coefficient of the process reward."""
    process_ramp: Ramp | None = None
    """Reach `process_weight` gradually: a PRM that has seen little is not to be trusted yet; null: from the start."""
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

    @model_validator(mode="after")
    def _discounts_mean_something(self) -> Self:
        if self.estimator == "ppo" and self.gamma_process != self.gamma_outcome:
            raise ValueError(
                f"ppo has one discount, since its critic values process rewards and outcome together; got "
                f"gamma_process={_or_null(self.gamma_process)}, gamma_outcome={_or_null(self.gamma_outcome)}: "
                "give both the same"
            )
        if self.estimator == "prime_value" and self.gamma_process is not None:
            raise ValueError(
                f"prime_value sums the process rewards before a token without discount, got "
                f"gamma_process={self.gamma_process:g}; set gamma_process: null"
            )
        return self


class Kl(Settings):
    """A pull towards the initial policy, in the loss."""

    weight: PositiveFloat
    """Multiplies the divergence (nats per token)."""
    estimator: Literal["k1", "k2", "k3"] = "k2"
    """k1 has the unbiased value and is given the gradient of k2, its own being noise; k2 has the gradient of
    KL(policy || initial); k3 (GRPO's) that of KL(initial || policy)."""


class Importance(Settings):
    """Truncated importance sampling: the loss of what the sampler drew is multiplied by trainer probability / sampler
    probability, but by no more than `cap`. Acts where another engine samples (`sampler.kind: vllm`) and nowhere else:
    the transformers sampler runs the trainer's own program, and its weights would be 1 but for rounding."""

    level: Literal["token", "sequence"] = "token"
    """One weight per token, or the product of its tokens' for a whole response: without bias, but noisy when long."""
    cap: Annotated[float, Field(ge=1.0)] = 2.0
    """The largest weight; lower it when `policy/importance_capped` is high and the loss jumps."""


class Loss(Settings):
    """The policy objective."""

    surrogate: Literal["ppo", "gspo", "cispo"] = "ppo"
    """`ppo`: clipped ratio per token; `gspo`: one ratio per response (arXiv 2507.18071, which clips at 3e-4 and 4e-4);
    `cispo`: the clipped ratio as a weight, so that no token loses its gradient (arXiv 2506.13585, with clip_low 1)."""
    clip_low: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped from above at 1 + clip_high; more than clip_low is DAPO's clip-higher (arXiv 2503.14476)."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """A token with a negative advantage loses at most this many times it (arXiv 1912.09729, with 3); null: no bound."""
    aggregate: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """Mean over responses of their token mean (the authors' main run), mean over all tokens, or sum over responses
    times `sampling.max_new_tokens` (Dr. GRPO, arXiv 2503.20783)."""
    kl: Kl | None = None
    """KL penalty against the initial policy, whose frozen weights are kept for it (one copy, shared with the PRM's
    reference where that is the same model); null: none, as in the paper."""
    entropy_bonus: NonNegative = 0.0
    """Weight of the entropy of the policy (nats per token), which is maximised; 0 in the paper."""
    importance: Importance | None = Importance()
    """Correction for the difference between sampler and trainer, where they are two engines; null: none."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError("cispo bounds every ratio already and has no dual clip; set dual_clip: null")
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


Overlong = Annotated[KeepOverlong | DropOverlong | MaskOverlong | PenalizeOverlong, Field(discriminator="kind")]


def _or_null(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


# --- schedule and place ------------------------------------------------------------------------------------------


class Evaluate(Settings):
    """Held-out evaluation during training; also done before the first and after the last step."""

    data: Source
    """Held-out problems."""
    every: PositiveInt | None = 16
    """Steps between evaluations; null: only before and after."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled responses per problem beside the greedy one, before and after training (avg@k, pass@k); 0: none."""
    temperature: PositiveFloat = 1.0
    """Temperature of the sampled responses."""


class Checkpoint(Settings):
    """When the whole state of the run is saved."""

    every: PositiveInt | None = 16
    """Steps between checkpoints; null: only when the run ends or is interrupted."""
    keep: PositiveInt = 2
    """How many of the newest checkpoints stay on disk."""


class SftCheckpoint(Checkpoint):
    """When the whole state of a warm start is saved: its steps are many and short."""

    every: PositiveInt | None = 500
    """Steps between checkpoints; null: only when the run ends or is interrupted."""


class LocalBackend(Settings):
    """Everything in this process, on one device."""

    kind: Literal["local"] = "local"
    device: str = "auto"
    """`auto` (CUDA when there is one, else CPU), `cpu`, `cuda`, `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type; weights and optimizer stay fp32. `auto`: bf16 on CUDA devices that have it, fp32 elsewhere."""
    micro_batch_tokens: PositiveInt = 16384
    """Padded tokens per forward-backward pass. Changes memory and speed, never the loss."""


class RayBackend(Settings):
    """Roles as Ray actors, on one machine or many (the `cluster` extra): policy, PRM, reference and critic sharded over
    the same ranks with FSDP2, samplers and verifiers in pools. See docs/cluster.md."""

    kind: Literal["ray"]
    address: str | None = None
    """A running Ray cluster: `auto` for the one this machine belongs to, or `ray://HOST:10001`; null starts Ray on this
    machine alone and ends it with the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the ranks compute on: `auto` is `cuda` where the cluster has GPUs. One rank takes one device."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type; weights and optimizer stay fp32. `auto`: bf16 on CUDA devices that have it, fp32 elsewhere."""
    micro_batch_tokens: PositiveInt = 16384
    """Padded tokens per forward-backward pass of a rank. Changes memory and speed, never the loss."""
    ranks: PositiveInt = 2
    """Processes that train, each on its share of the rows and with its share of the weights; a run may be resumed with
    another number of them."""
    replicas: PositiveInt = 1
    """Copies of the sharded models (HSDP): with several nodes, one copy a node keeps most of the traffic inside."""
    samplers: PositiveInt = 1
    """Processes that sample."""
    colocate: bool = True
    """Samplers share the devices of the ranks, taking turns; `false` gives each a device of its own."""
    verifiers: PositiveInt = 1
    """Processes that judge; each also has the workers that `verify` asks for."""
    placement: Literal["pack", "spread"] = "pack"
    """Ranks on as few nodes as possible, or each on a node of its own."""
    cpu_offload: bool = False
    """Shards rest in the CPU's memory, where the optimizer works, too: for models too large for the GPUs."""
    collective_timeout: PositiveFloat = 1800.0
    """Seconds that a rank waits for the others before the run ends; the longest update must fit in, and the time in
    which the first rank reads a model."""
    restarts: Annotated[int, Field(ge=0)] = 2
    """How often the run begins again from its last checkpoint when a rank is lost."""

    @model_validator(mode="after")
    def _shares_are_whole(self) -> Self:
        if self.ranks % self.replicas:
            raise ValueError(
                f"need ranks to be a multiple of replicas, got ranks={self.ranks}, replicas={self.replicas}; change one"
            )
        if self.cpu_offload and self.device == "cpu":
            raise ValueError("cpu_offload: there is nothing to offload from with device: cpu; set cpu_offload: false")
        return self


Backend = Annotated[
    Annotated[LocalBackend, Tag("local")] | Annotated[RayBackend, Tag("ray")], Discriminator(_kind_or("local"))
]


# --- supervised warm start ---------------------------------------------------------------------------------------


class Pretrained(Settings):
    """Start from an existing model."""

    kind: Literal["pretrained"] = "pretrained"
    model: str
    """A Hugging Face folder or Hub id."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""


class TinyModel(Settings):
    """A small Qwen2-type model with a character-level tokenizer, made on the spot."""

    kind: Literal["tiny"]
    width: PositiveInt = 128
    """Hidden size."""
    layers: PositiveInt = 2
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads, got width={self.width}, heads={self.heads}")
        return self


InitialModel = Annotated[Pretrained | TinyModel, Field(discriminator="kind")]
