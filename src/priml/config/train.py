"""Settings of `priml train`."""

from __future__ import annotations

from typing import Self

from pydantic import PositiveInt, model_validator

from priml.config.alarms import Alarms
from priml.config.algorithm import Advantage, KeepOverlong, Loss, Overlong, PenalizeOverlong
from priml.config.backend import Backend, LocalBackend, RayBackend
from priml.config.base import RunDir, Seed, Settings, fill
from priml.config.data import Data
from priml.config.environments import Environment
from priml.config.graders import ChoiceVerifier, ExactVerifier, MathVerifier, Verify
from priml.config.models import Critic, CrossEntropyLoss, CustomPrm, Policy, Prm, ProcessRewardModel
from priml.config.rollout import Batch, Filter, Sampling, TrainingSampler, TrainingTransformersSampler
from priml.config.schedule import Checkpoint, Evaluate, Tracker
from priml.names import ESTIMATOR_NEEDS, GROUP_PRM_LOSSES, PUBLISHED_PRESETS


class TrainConfig(Settings):
    """Online PRIME, or outcome-only reinforcement learning with `prm: null`."""

    run_dir: RunDir
    """Output folder; refused when it already holds a run (resume with `priml train RUN_DIR`)."""
    seed: Seed = 0
    """Seeds sampling, data order and mini-batches."""
    steps: PositiveInt = 592
    """Training steps (rollout, PRM update, policy update)."""
    policy: Policy
    """The model being trained."""
    prm: ProcessRewardModel | None = Prm()
    """The process reward model; null trains on outcomes alone."""
    critic: Critic | None = None
    """The value model, for the estimator `ppo` and no other; `critic: {}` takes its defaults."""
    sampler: TrainingSampler = TrainingTransformersSampler()
    """What generates the responses."""
    sampling: Sampling = Sampling()
    """How responses are drawn."""
    batch: Batch = Batch()
    """Prompts per step."""
    filter: Filter | None = Filter()
    """Online prompt filter; null keeps every decided prompt."""
    overlong: Overlong = KeepOverlong()
    """What becomes of responses that reach the token limit."""
    advantage: Advantage = Advantage()
    """Advantage estimation."""
    loss: Loss = Loss()
    """Policy objective."""
    data: Data
    """Training problems."""
    environment: Environment | None = None
    """What answers the policy between its turns; null: responses of one turn."""
    verify: Verify = MathVerifier()
    """What judges responses."""
    alarms: Alarms = Alarms()
    """Signs of reward hacking, and what to do about them."""
    evaluate: Evaluate | None = None
    """Held-out evaluation; null for none."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    backend: Backend = LocalBackend()
    """Where it runs."""
    trackers: tuple[Tracker, ...] = ()
    """Where metrics go, besides `metrics.jsonl` and the screen: `[trackio]`, `[wandb]`, `[tensorboard]`, `[mlflow]`, or
    your own."""

    @property
    def implicit_prm(self) -> Prm | None:
        """The settings of the implicit PRM; None without one."""
        return self.prm if isinstance(self.prm, Prm) else None

    @property
    def scores_policy_first(self) -> bool:
        """Whether something reads the policy's log-probs before its update: a PRM that has them as its reference, or
        one of the user's own, which is given the whole batch."""
        prm = self.implicit_prm
        return isinstance(self.prm, CustomPrm) or (prm is not None and prm.reference == "policy")

    @model_validator(mode="after")
    def _preset_brings_its_prm(self) -> Self:
        needs, prm = self.advantage.needs, self.implicit_prm
        pays_each_token = self.prm is None or (prm is not None and prm.granularity == "token")
        if needs.values or needs.token_rewards or not pays_each_token:
            fill(self, "advantage", preset="authors")
        if self.advantage.preset in PUBLISHED_PRESETS:
            fill(self, "advantage", gate=None)
            if prm:
                fill(self, "prm", loss=CrossEntropyLoss(), reference="initial", replay=None)
        return self

    @model_validator(mode="after")
    def _groups_are_large_enough(self) -> Self:
        k, estimator = self.sampling.group_size, self.advantage.estimator
        if k < 2 and self.advantage.needs.groups:
            raise ValueError(
                f"sampling.group_size: {estimator} compares the responses of a group, got group_size={k}; "
                "set sampling.group_size >= 2 or advantage.estimator: reinforce"
            )
        if k < 2 and (prm := self.implicit_prm) and prm.loss.kind in GROUP_PRM_LOSSES:
            raise ValueError(
                f"prm.loss.kind: {prm.loss.kind} compares the responses of a group, got group_size={k}; "
                "set sampling.group_size >= 2 or prm.loss.kind: ce"
            )
        if self.filter is not None:
            reachable = [i / k for i in range(k + 1) if self.filter.low <= i / k <= self.filter.high]
            if not reachable and isinstance(self.verify, MathVerifier | ChoiceVerifier | ExactVerifier):
                raise ValueError(
                    f"filter: no share of correct answers out of group_size={k} lies in "
                    f"[{self.filter.low:g}, {self.filter.high:g}]; widen the band, raise sampling.group_size, "
                    "or set filter: null"
                )
        return self

    @model_validator(mode="after")
    def _estimator_has_what_it_needs(self) -> Self:
        estimator = self.advantage.estimator
        needs, prm = self.advantage.needs, self.implicit_prm
        if needs.values and self.critic is None:
            raise ValueError(
                f"advantage.estimator: {estimator} needs a critic, got critic: null; add critic: {{}} for its defaults"
            )
        if estimator in ESTIMATOR_NEEDS and not needs.values and self.critic is not None:
            having = " or ".join(name for name, its in ESTIMATOR_NEEDS.items() if its.values)
            raise ValueError(
                f"critic: only the estimator {having} has one, got advantage.estimator: {estimator}; set critic: null"
            )
        if needs.token_rewards and (self.prm is None or (prm and prm.granularity == "whole")):
            found = "prm: null" if self.prm is None else "prm.granularity: whole"
            raise ValueError(
                f"advantage.estimator: {estimator} takes the process rewards before each token as its baseline, and "
                f"with {found} there are none; set prm.granularity: token or advantage.estimator: reinforce"
            )
        if self.prm is None and self.advantage.process_ramp is not None:
            raise ValueError(
                "advantage.process_ramp: there is no process reward to weigh with prm: null; set process_ramp: null"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if isinstance(self.backend, RayBackend) and self.sampler.holds_own_weights:
            devices = self.backend.samplers * self.sampler.devices
            if self.backend.colocate and devices > self.backend.ranks:
                raise ValueError(
                    f"backend.samplers: {self.backend.samplers} engines on {self.sampler.devices} devices each "
                    f"need {devices}, and colocate: true gives them those of {self.backend.ranks} ranks, one engine to "
                    "a device; lower backend.samplers or sampler.tensor_parallel, or set backend.colocate: false"
                )
        if self.sampler.separate_adapters and self.policy.lora is None:
            raise ValueError(
                "sampler.adapters: separate: the policy has no adapters, with policy.lora: null; set "
                "sampler.adapters: merged, or policy.lora: {}"
            )
        if self.sampling.max_staleness:
            self._can_sample_while_training()
        longest = self.sampling.max_new_tokens
        if isinstance(self.overlong, PenalizeOverlong) and self.overlong.window > longest:
            raise ValueError(
                f"overlong.window: the slope of {self.overlong.window} tokens is longer than a response may be "
                f"(sampling.max_new_tokens={longest}); make it shorter"
            )
        return self

    def _can_sample_while_training(self) -> None:
        found = f"sampling.max_staleness: {self.sampling.max_staleness} samples while training goes on"
        if isinstance(self.backend, RayBackend):
            if self.backend.colocate:
                raise ValueError(
                    f"{found}, and with backend.colocate: true samplers and ranks take turns on the same devices; set "
                    "backend.colocate: false, or sampling.max_staleness: 0"
                )
        elif self.sampler.shares_weights:
            raise ValueError(
                f"{found}, and this sampler reads the weights that are trained; set sampler.copy_weights: true (two "
                "copies of the weights), or sampling.max_staleness: 0"
            )
        if self.sampler.sleeps:
            raise ValueError(
                f"{found}, and with sampler.sleep: true the sampler gives its memory back for that time; set "
                "sampler.sleep: false, or sampling.max_staleness: 0"
            )
