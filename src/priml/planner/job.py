"""The job that is planned: settings, the models they name, and assumptions about the data."""

from __future__ import annotations

from dataclasses import dataclass

from priml.config.train import TrainConfig
from priml.planner.batch import BatchPlan, Lengths
from priml.planner.facts import ModelFacts, Shape
from priml.planner.layout import Layout, pass_tokens
from priml.planner.machine import LAUNCH_SECONDS, Machine


@dataclass(frozen=True, slots=True)
class Model:
    """A model in its role."""

    role: str
    facts: ModelFacts
    is_trained: bool
    shares_weights: bool = False
    """Its frozen weights are the very tensors of a role before it: only what it adds to them is its own."""

    @property
    def trainable(self) -> int:
        """Parameters that an optimizer moves."""
        return (self.facts.adapters or self.facts.parameters) if self.is_trained else 0

    @property
    def own_parameters(self) -> int:
        """Parameters that no other role shares."""
        return (0 if self.shares_weights else self.facts.parameters) + self.facts.adapters


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that the arithmetic starts from."""

    cfg: TrainConfig
    models: tuple[Model, ...]
    """The models in memory, the policy first."""
    lengths: Lengths
    batch: BatchPlan
    machine: Machine
    layout: Layout
    precision: str
    """`fp32` or `bf16`: what is computed in."""
    remarks: tuple[str, ...] = ()
    """What the backend's settings were taken to mean on this machine."""

    @property
    def policy(self) -> ModelFacts:
        """The model that samples and learns."""
        return self.models[0].facts

    @property
    def scored_share(self) -> float:
        """Share of the batch that the policy scores in passes of their own: all, if something reads the scores before
        the update, else what is not in the first mini-batch."""
        if self.cfg.scores_policy_first:
            return 1.0
        first, *others = self.batch.updates[-1].mini_batches  # the policy updates last
        return sum(others) / (first + sum(others))

    @property
    def is_paged(self) -> bool:
        """The sampler has a paged cache: a row that ends makes room for another at once, and rows wait when memory is
        short. Otherwise rows go in waves until the longest ends, and memory must suffice for all of them."""
        return self.cfg.sampler.reserved_cache_gib is not None

    @property
    def layer_seconds(self) -> float:
        """Seconds that the sampler needs for a layer in one decoding step, however little there is to compute."""
        return LAUNCH_SECONDS[self.cfg.sampler.launches]

    def model(self, role: str) -> Model | None:
        """The model in a role, if there is one."""
        return next((model for model in self.models if model.role == role), None)


def training_shape(cfg: TrainConfig, lengths: Lengths, precision: str, layout: Layout) -> Shape:
    """The largest micro-batch that can occur: the longest rows up to the token budget, one at least, and no more than
    an optimizer step has on one device."""
    responses = cfg.batch.prompts * cfg.sampling.group_size
    largest = max(trained.mini_batch or responses for trained in (cfg.policy, cfg.implicit_prm) if trained)
    rows_per_rank = -(-min(largest, responses) // layout.ranks)
    rows = max(1, min(pass_tokens(cfg) // lengths.longest, rows_per_rank))
    lowered = "bf16" if layout.is_sharded else "autocast"
    return Shape(
        rows=rows,
        length=lengths.longest,
        predicted=lengths.longest_response,
        precision="fp32" if precision == "fp32" else lowered,
        checkpointing=cfg.policy.gradient_checkpointing,
    )


def frozen_roles(cfg: TrainConfig) -> dict[str, str]:
    """The frozen models of a run by role, with their sources (`initial` or a name)."""
    roles: dict[str, str] = {}
    if (prm := cfg.implicit_prm) and prm.reference != "policy":
        roles["reference"] = prm.init if prm.reference == "initial" else prm.reference
    if cfg.loss.kl and roles.get("reference") not in ("initial", cfg.policy.model):
        roles["initial policy"] = "initial"
    return roles
