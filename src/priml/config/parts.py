"""The parts that settings files are made of. Defaults are the paper's main run (arXiv 2502.01456)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from priml.config.base import Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Seed = Annotated[int, Field(ge=0)]


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


class SftOptimizer(Optimizer):
    """AdamW for the supervised warm start."""

    lr: PositiveFloat = 1.0e-5
    """Peak learning rate."""


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
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""


class Prm(Settings):
    """The implicit process reward model: beta * (log pi_prm - log pi_ref) per token, trained online on outcomes."""

    init: str = "initial"
    """`initial`: the policy's initial checkpoint (the paper's choice), or a Hugging Face folder or Hub id with the
    policy's vocabulary."""
    reference: Literal["initial", "policy"] = "initial"
    """What the PRM is compared with: its own frozen initial weights, or the rollout policy's log-probs of this step
    (no third model)."""
    forward: Literal["single", "double", "frozen"] = "single"
    """`single`: rewards come from the very passes that train the PRM; `double`: the batch is scored again after the
    update; `frozen`: the PRM is never updated (an ablation: it gets over-optimised)."""
    loss: Literal["ce", "pairwise"] = "ce"
    """`ce`: cross-entropy on outcomes (the paper's); `pairwise`: right against wrong inside each group, which cancels
    the prompt's constant."""
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

    @field_validator("step_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


# --- rollouts ----------------------------------------------------------------------------------------------------


class TransformersSampler(Settings):
    """Sampling in this process with transformers models and a key-value cache."""

    kind: Literal["transformers"] = "transformers"
    max_rows: PositiveInt = 1024
    """Responses generated at once; lower it when the key-value cache does not fit."""


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
    drop_truncated: bool = False
    """Also drop a prompt when any of its responses was cut at the token limit."""
    max_rounds: PositiveInt = 20
    """Sampling rounds per step before the run stops as starved."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"need low <= high, got low={self.low:g}, high={self.high:g}; swap them")
        return self


# --- algorithm ---------------------------------------------------------------------------------------------------


class Advantage(Settings):
    """From outcomes and process rewards to advantages."""

    estimator: Literal["rloo", "reinforce", "grpo"] = "rloo"
    """RLOO (leave-one-out baseline, the paper's main run), REINFORCE (no baseline, Eq. 8) or GRPO (Eq. 7)."""
    preset: Literal["paper", "authors", "verl"] = "authors"
    """Whose arithmetic: the paper's formulas, the authors' released program, or verl's recipe."""
    process_weight: NonNegative = 1.0
    """Multiplies the preset's coefficient of the process reward."""
    outcome_weight: NonNegative = 1.0
    """Multiplies the preset's coefficient of the outcome."""
    gamma_process: Share | None = None
    """Discount of process rewards; null takes the preset's."""
    gamma_outcome: Share | None = None
    """Discount of the outcome; null takes the preset's."""


class Loss(Settings):
    """The clipped policy objective."""

    clip_low: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped from above at 1 + clip_high."""
    aggregate: Literal["sequence_mean", "token_mean"] = "sequence_mean"
    """Mean over responses of their token mean (the authors' main run), or mean over all tokens."""


# --- data --------------------------------------------------------------------------------------------------------


class FileSource(Settings):
    """Problems from a JSONL (.jsonl, .jsonl.gz) or parquet file."""

    kind: Literal["file"] = "file"
    path: Path
    """The file. Eurus / verl rows, and rows with a problem and an answer, are recognised."""
    columns: dict[str, str] | None = None
    """For other schemas: which column is the `prompt`, the `answer` (and `id`, `source`, `response`)."""
    limit: PositiveInt | None = None
    """Read only the first rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`skip` keeps the good rows and reports the bad ones."""


class HubSource(Settings):
    """Problems from the Hugging Face Hub (needs the `hub` extra)."""

    kind: Literal["hub"]
    dataset: str
    """Data set id or a local data set folder."""
    split: str = "train"
    """Which split."""
    name: str | None = None
    """Configuration of the data set."""
    revision: str | None = None
    """Commit or tag; pin it to be able to repeat the run."""
    columns: dict[str, str] | None = None
    """As for files."""
    limit: PositiveInt | None = None
    """Read only the first rows."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`skip` keeps the good rows and reports the bad ones."""


class _Task(Settings):
    """Procedural problems whose every step can be checked."""

    split: Literal["train", "held_out"] = "train"
    """Disjoint by construction: a hash of the problem decides."""
    count: PositiveInt = 4096
    """How many problems."""
    seed: Seed = 0
    """Which problems, and which facts the teacher gets wrong."""
    doubtful: Share = 0.2
    """Share of facts for which the SFT teacher has a fixed wrong value."""
    wrong: Share | tuple[Share, ...] = 0.4
    """How often the teacher writes the wrong value of a doubtful fact; of several values each fact draws one. All
    steps of the teacher's answers are right about (1 - doubtful * wrong) ^ length of the time."""


class ChainSource(_Task):
    """Chained arithmetic modulo `modulus`, `4KDA=`: each letter adds or multiplies, each result is written down."""

    kind: Literal["chain"]
    length: PositiveInt = 30
    """Operations per problem; a response is length + 4 tokens long."""
    modulus: Annotated[int, Field(ge=3, le=36)] = 19
    """Number of states, one character each (0-9a-z); a prime above 13 makes every operation reversible."""


class WalkSource(_Task):
    """A walk through random permutations: one token per look-up, only the last state is checked."""

    kind: Literal["walk"]
    length: PositiveInt = 60
    """Look-ups per problem; a response is length + 4 tokens long."""
    states: Annotated[int, Field(ge=2, le=36)] = 20
    """Number of states, one character each."""
    operations: Annotated[int, Field(ge=1, le=26)] = 26
    """Number of permutations, one letter each."""


Source = Annotated[FileSource | HubSource | ChainSource | WalkSource, Field(discriminator="kind")]


class PromptFormat(Settings):
    """How a problem becomes the text the model reads."""

    system: str | None = None
    """System message; rows that bring their own keep theirs."""
    suffix: str | None = None
    """Appended to the question, e.g. a request to box the answer."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """The tokenizer's chat template when it has one (`auto`), required (`chat`), or never (`plain`)."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer prompts are dropped and counted."""


class Data(Settings):
    """Training problems."""

    train: Source
    """Where they come from."""
    prompt: PromptFormat = PromptFormat()
    """How they are rendered."""


# --- verifiers ---------------------------------------------------------------------------------------------------


class MathVerifier(Settings):
    """Mathematical answers in a box, judged by value."""

    kind: Literal["math"] = "math"
    workers: PositiveInt = 2
    """Worker processes for the answers the fast path cannot decide."""
    time_limit: PositiveFloat = 1.0
    """Seconds per answer; over it the answer is wrong."""
    rules: Literal["strict", "authors"] = "strict"
    """Exact equality, or the lenient rules of the authors' program (for parity, hackable)."""


class CustomVerifier(Settings):
    """Your own function `grade(problem, response)`."""

    kind: Literal["custom"]
    function: str
    """`path/to/file.py:name` or `package.module:name`."""


Verify = Annotated[MathVerifier | CustomVerifier, Field(discriminator="kind")]


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


class LocalBackend(Settings):
    """Everything in this process, on one device."""

    kind: Literal["local"] = "local"
    device: str = "auto"
    """`auto` (CUDA when there is one, else CPU), `cpu`, `cuda`, `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute type; weights and optimizer stay fp32. `auto`: bf16 on CUDA devices that have it, fp32 elsewhere."""
    micro_batch_tokens: PositiveInt = 16384
    """Padded tokens per forward-backward pass. Changes memory and speed, never the loss."""


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
