"""What is planned: settings, the models they name, and what is assumed of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from priml.config.train import TrainConfig
from priml.plan.batch import BatchPlan, Lengths
from priml.plan.facts import ModelFacts, Shape
from priml.plan.machine import Machine


@dataclass(frozen=True, slots=True)
class Model:
    """A model in its role."""

    role: str
    facts: ModelFacts
    is_trained: bool


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that the arithmetic starts from."""

    cfg: TrainConfig
    models: tuple[Model, ...]
    """Those that are held, the policy first."""
    lengths: Lengths
    batch: BatchPlan
    machine: Machine
    precision: str
    """`fp32` or `bf16`: what is computed in."""

    @property
    def policy(self) -> ModelFacts:
        """The model that samples and learns."""
        return self.models[0].facts

    def model(self, role: str) -> ModelFacts | None:
        """The model in a role, if there is one."""
        return next((model.facts for model in self.models if model.role == role), None)

    def trained(self) -> Iterator[Model]:
        """Models with an optimizer."""
        return (model for model in self.models if model.is_trained)


def training_shape(cfg: TrainConfig, lengths: Lengths, precision: str, machine: Machine) -> Shape:
    """The largest micro-batch that can occur: rows of the longest kind up to the token budget, one at least, and no
    more than an optimizer step has on one device."""
    responses = cfg.batch.prompts * cfg.sampling.group_size
    sizes = [cfg.policy.mini_batch or responses, *([cfg.prm.mini_batch or responses] if cfg.prm else [])]
    rows_per_rank = -(-min(max(sizes), responses) // machine.ranks)
    rows = max(1, min(cfg.backend.micro_batch_tokens // lengths.longest, rows_per_rank))
    lowered = "bf16" if machine.is_sharded else "autocast"
    return Shape(
        rows=rows,
        length=lengths.longest,
        predicted=lengths.longest_response,
        precision="fp32" if precision == "fp32" else lowered,
        checkpointing=cfg.policy.gradient_checkpointing,
    )


def frozen_roles(cfg: TrainConfig) -> dict[str, str]:
    """The frozen models that a run holds beside those it trains, and where they come from (`initial` or a name)."""
    roles: dict[str, str] = {}
    if cfg.prm and cfg.prm.reference != "policy":
        roles["reference"] = cfg.prm.init if cfg.prm.reference == "initial" else cfg.prm.reference
    if cfg.loss.kl and roles.get("reference") not in ("initial", cfg.policy.model):
        roles["initial policy"] = "initial"
    return roles
