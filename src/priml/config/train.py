"""Settings of `priml train`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import PositiveInt, model_validator

from priml.config.base import Settings
from priml.config.parts import (
    Advantage,
    Batch,
    Checkpoint,
    Data,
    Evaluate,
    Filter,
    LocalBackend,
    Loss,
    MathVerifier,
    Policy,
    Prm,
    Sampling,
    Seed,
    TransformersSampler,
    Verify,
)


class TrainConfig(Settings):
    """Online PRIME, or outcome-only reinforcement learning with `prm: null`."""

    run_dir: Path
    """Output folder; refused when it already holds a run (resume with `priml train RUN_DIR`)."""
    seed: Seed = 0
    """Seeds sampling, data order and mini-batches."""
    steps: PositiveInt = 592
    """Training steps (rollout, PRM update, policy update)."""
    policy: Policy
    """The model being trained."""
    prm: Prm | None = Prm()
    """The process reward model; null trains on outcomes alone."""
    sampler: TransformersSampler = TransformersSampler()
    """What generates the responses."""
    sampling: Sampling = Sampling()
    """How responses are drawn."""
    batch: Batch = Batch()
    """Prompts per step."""
    filter: Filter | None = Filter()
    """Online prompt filter; null keeps every decided prompt."""
    advantage: Advantage = Advantage()
    """Advantage estimation."""
    loss: Loss = Loss()
    """Policy objective."""
    data: Data
    """Training problems."""
    verify: Verify = MathVerifier()
    """What judges responses."""
    evaluate: Evaluate | None = None
    """Held-out evaluation; null for none."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    backend: LocalBackend = LocalBackend()
    """Where it runs."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        k, estimator = self.sampling.group_size, self.advantage.estimator
        if k < 2 and estimator in ("rloo", "grpo"):
            raise ValueError(
                f"sampling.group_size: {estimator} compares the responses of a group, got group_size={k}; "
                "set sampling.group_size >= 2 or advantage.estimator: reinforce"
            )
        if k < 2 and self.prm is not None and self.prm.loss == "pairwise":
            raise ValueError(
                f"prm.loss: pairwise compares the responses of a group, got group_size={k}; "
                "set sampling.group_size >= 2 or prm.loss: ce"
            )
        if self.filter is not None:
            reachable = [i / k for i in range(k + 1) if self.filter.low <= i / k <= self.filter.high]
            if not reachable and isinstance(self.verify, MathVerifier):
                raise ValueError(
                    f"filter: no share of correct answers out of group_size={k} lies in "
                    f"[{self.filter.low:g}, {self.filter.high:g}]; widen the band, raise sampling.group_size, "
                    "or set filter: null"
                )
        if self.prm is not None and self.prm.reference == "policy" and self.sampling.temperature != 1.0:
            raise ValueError(
                f"prm.reference: policy compares the PRM with the rollout's own log-probs, which are taken at "
                f"temperature {self.sampling.temperature:g}; set sampling.temperature: 1.0 or prm.reference: initial"
            )
        return self
