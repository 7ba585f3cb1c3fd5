"""Settings of models and how they are trained. Sizes and rates are those of the paper's main run (arXiv 2502.01456)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from priml.config.base import CustomFunction, NonNegative, Pattern, Settings, Share, ShortForm, fill

ExportDtype = Literal["auto", "float32", "bfloat16", "float16"]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
LearningRate = Annotated[float, Field(gt=0.0, le=10.0)]
"""AdamW moves each weight by about so much in a step."""


class Optimizer(Settings):
    """AdamW. A class for each of its places: there, giving the learning rate alone keeps the other defaults."""

    lr: LearningRate
    """Learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam moment decay rates."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""


class PolicyOptimizer(Optimizer):
    """AdamW for the policy."""

    lr: LearningRate = 5.0e-7
    """Learning rate, constant (the paper uses no warm-up in RL)."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""


class PrmOptimizer(Optimizer):
    """AdamW for the process reward model."""

    lr: LearningRate = 1.0e-6
    """Learning rate, constant."""
    max_grad_norm: PositiveFloat = 10.0
    """Gradients are scaled down to this global norm."""


class CriticOptimizer(Optimizer):
    """AdamW for the critic."""

    lr: LearningRate = 1.0e-5
    """Learning rate, constant; a new head has everything to learn."""


class SftOptimizer(Optimizer):
    """AdamW for the supervised warm start."""

    lr: LearningRate = 1.0e-5
    """Peak learning rate."""


class Lora(Settings):
    """Low-rank adapters (the `lora` extra): the weights stay as they are, and small matrices beside them learn."""

    rank: PositiveInt = 16
    """Rank of each adapter; more can learn more, and costs more memory."""
    alpha: PositiveFloat = 32.0
    """Adapters count alpha / rank times."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Layers that have one: all linear ones but the head, or names such as [q_proj, v_proj]."""
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
    export_dtype: ExportDtype = "auto"
    """Type of the weights that the run leaves. `auto`: as they came. They are trained in float32 whatever it is, and
    PRM and critic stay so: rewards are differences that bfloat16 would round away."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""


class CrossEntropyLoss(Settings):
    """Cross-entropy of each response's score and its outcome: the paper's. It needs no pairs."""

    kind: Literal["ce"] = "ce"


class PairwiseLoss(Settings):
    """Right against wrong inside each group (DPO), which cancels the prompt's constant."""

    kind: Literal["pairwise"]


class DetachedLoss(Settings):
    """Each response against the constant mean score of its rivals in the group (verl's)."""

    kind: Literal["detached"]


class LikelihoodLoss(Settings):
    """Maximum likelihood of the right responses, weighed by their outcomes. A token is then paid by how much it raised
    the log-chance of success. Wrong responses cost no training pass."""

    kind: Literal["likelihood"] = "likelihood"


PrmLoss = Annotated[
    CrossEntropyLoss | PairwiseLoss | DetachedLoss | LikelihoodLoss,
    Field(discriminator="kind"),
    ShortForm("likelihood"),
]


class Replay(Settings):
    """Responses of earlier steps that the PRM, and only the PRM, learns from again."""

    passes: PositiveInt = 1
    """So many passes after that over the new batch. Each has as many responses as that batch, drawn from all kept ones,
    whole groups at a time."""
    keep: PositiveInt = 4096
    """At most so many responses, in host memory; the oldest groups leave first."""


class Prm(Settings):
    """The implicit process reward model: beta * (log pi_prm - log pi_ref) per token, trained online on outcomes."""

    kind: Literal["implicit"] = "implicit"
    init: str = "initial"
    """`initial`: the policy's initial checkpoint (the paper's choice), or a Hugging Face folder or Hub id with the
    policy's tokenizer: a base model, another size, or an implicit PRM trained before."""
    reference: str = "policy"
    """What the PRM is compared with. `policy`: the rollout policy's log-probs of this step (no third model); `initial`:
    the frozen weights it starts from, the default of a published preset and of another `init`; or a folder or Hub id.
    For an `init` that was trained before, give the model that it was trained against; otherwise it begins again from
    zero rewards."""
    forward: Literal["single", "double", "frozen"] = "single"
    """`single`: rewards come from the very passes that train the PRM; `double`: the batch is scored again after the
    update; `frozen`: the PRM is never updated (an ablation: it gets over-optimised; against its own initial weights
    all its rewards are 0)."""
    loss: PrmLoss = LikelihoodLoss()
    """How it learns from outcomes. The default of a published preset is `ce`."""
    replay: Replay | None = Replay()
    """Learn again from responses of earlier steps; null: each response is learnt from in its own step alone, as in the
    paper. The default of a published preset, and of `forward: frozen`, is null."""
    beta: PositiveFloat | Literal["auto"] = 0.05
    """Reward scale. `auto`: 50 / mean response length of the first training batch, then fixed for the run."""
    granularity: Literal["token", "step", "whole"] = "token"
    """Where rewards are paid: at every token, at the end of each step, or once at the end of the response."""
    step_pattern: Pattern = r"\n"
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

    @property
    def passes(self) -> int:
        """In each step, over the new batch and over as many kept responses."""
        return self.epochs + (self.replay.passes if self.replay else 0)

    @model_validator(mode="after")
    def _has_something_to_learn(self) -> Self:
        if self.forward == "frozen":
            fill(self, replay=None)
        if self.init != "initial":
            fill(self, reference="initial")
        if self.forward == "frozen" and self.replay is not None:
            raise ValueError("replay: a PRM with forward: frozen never learns; set replay: null, or forward: single")
        return self


class CustomPrm(Settings):
    """Your own process reward model. It is not trained, and a checkpoint keeps nothing of it."""

    kind: Literal["custom"]
    function: CustomFunction
    """`file.py:name` or `package.module:name`: called as `rewards(batch, tokenizer)`, it returns the reward of each
    response token."""
    step_pattern: Pattern = r"\n"
    """Regular expression whose match ends a step: where the batch says that steps end."""


ProcessRewardModel = Annotated[Prm | CustomPrm, Field(discriminator="kind"), ShortForm("implicit")]


class Critic(Settings):
    """The value model of PPO: the policy's architecture with one output per token, learning from returns."""

    init: str = "initial"
    """`initial`: the policy's initial checkpoint with a new head (values start at 0), or a folder or Hub id with the
    policy's tokenizer: another language model, or the `critic/` folder of an earlier run."""
    gae_lambda: Share = 1.0
    """Generalised advantage estimation: 1 sums all rewards to come (the paper's), 0 looks one token ahead."""
    clip: PositiveFloat = 0.5
    """The value loss is clipped where a value moves further than this from its old one."""
    optimizer: CriticOptimizer = CriticOptimizer()
    """The critic's own optimizer."""
    mini_batch: PositiveInt | None = 256
    """Responses per optimizer step; null takes the whole batch in one step."""
    epochs: PositiveInt = 1
    """Passes over each batch."""


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


InitialModel = Annotated[
    Pretrained | TinyModel,
    Field(discriminator="kind"),
    ShortForm("pretrained", text=lambda text: {"kind": "pretrained", "path": text}),
]
