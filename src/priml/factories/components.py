"""Who plays the roles of a training run: objects of this process, or stand-ins for Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from priml.config.backend import RayBackend
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_advantages
from priml.factories.data import Say
from priml.factories.graders import build_verifier
from priml.factories.learners import (
    DeviceSpec,
    build_critic,
    build_policy,
    build_prm,
    build_sampler,
    longest_sequence,
    resolve_device,
    step_end_finder,
)
from priml.graders.base import Verifier
from priml.graders.pool import THREADS
from priml.learners.base import Critic, NoCritic, Policy, Prm
from priml.learners.policy import LocalPolicy
from priml.learners.prm import ImplicitPrm, NoPrm
from priml.models.checkpoint import weights_digest
from priml.models.load import check_tokens_fit, load_model
from priml.rollout.base import Sampler
from priml.training.advantages import AdvantageEstimator
from priml.training.records import LocalRecords, Records
from priml.training.timing import Clock
from priml.types import Prompt


def _nothing() -> None:
    """There is nothing to let go of."""


def _no_idle(elapsed_s: float) -> dict[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Components:
    """The roles of a run, whoever plays them."""

    policy: Policy
    prm: Prm
    critic: Critic
    advantages: AdvantageEstimator
    sampler: Sampler
    verifier: Verifier
    records: Records
    isolation: tuple[str, ...]
    """Under which the programs of responses run."""
    digests: Mapping[str, str]
    """sha256 of the weights by role, as they are at first."""
    device: Mapping[str, str]
    """What the roles compute on, for the manifest."""
    threads: int = THREADS
    """Responses that the verifier judges at once."""
    idle: Callable[[float], dict[str, float]] = field(default=_no_idle)
    """Share of a step of so many seconds in which each pool of processes had nothing to do, as metrics."""
    close: Callable[[], None] = field(default=_nothing)
    """End the processes."""

    def timed_policy(self, clock: Clock) -> Policy:
        """The policy on the clock; its initial weights, if there are any here, as `reference`."""
        if isinstance(self.policy, LocalPolicy) and self.policy.initial is not None:
            self.policy.initial = clock.wrap(self.policy.initial, "reference", {"scores": "reference"})
        return clock.wrap(self.policy, "policy", {"score": "policy", "update": "policy"})

    def timed_critic(self, clock: Clock) -> Critic:
        """The critic on the clock, if there is one."""
        if isinstance(self.critic, NoCritic):
            return self.critic
        return clock.wrap(self.critic, "critic", {"estimate_values": "critic", "update": "critic"})

    def timed_prm(self, clock: Clock) -> Prm:
        """The PRM on the clock; its reference, if there is one here, apart from it."""
        if isinstance(self.prm, NoPrm):
            return self.prm
        if isinstance(self.prm, ImplicitPrm):
            self.prm.reference = clock.wrap(self.prm.reference, "reference", {"logprobs": "reference"})
        return clock.wrap(self.prm, "prm", {"update": "prm", "rewards": "prm"})


def build_components(cfg: TrainConfig, tokenizer: Any, prompts: Sequence[Prompt], say: Say) -> Components:
    """The roles where the settings put them. `prompts` are all of the run, those of its evaluation included.

    Raises:
        UsageError: something the settings name is missing, or does not fit.
    """
    if isinstance(cfg.backend, RayBackend):
        from priml.factories.ray import build_components_on_ray

        return build_components_on_ray(cfg, cfg.backend, tokenizer, prompts, say)
    return _cast_here(cfg, resolve_device(cfg.backend), tokenizer, prompts, say)


def _cast_here(cfg: TrainConfig, place: DeviceSpec, tokenizer: Any, prompts: Sequence[Prompt], say: Say) -> Components:
    judge = build_verifier(cfg.verify, [p.problem for p in prompts], say)
    module = load_model(cfg.policy.model, device=place.device, trust_remote_code=cfg.policy.trust_remote_code)
    check_tokens_fit(cfg.policy.model, module, tokenizer, (p.token_ids for p in prompts))
    prm = build_prm(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else NoPrm()
    policy = build_policy(cfg, module, tokenizer, place, prm=prm)
    critic = build_critic(cfg, module, tokenizer, place)
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
    digests = {"policy": weights_digest(module), "prm": prm.digest(), "critic": critic.digest()}
    return Components(
        policy=policy,
        prm=prm,
        critic=critic,
        advantages=build_advantages(cfg),
        sampler=build_sampler(cfg.sampler, module, tokenizer, place, longest=longest, lora=cfg.policy.lora),
        verifier=judge.verifier,
        records=LocalRecords(step_end_finder(cfg, tokenizer)),
        isolation=judge.isolation,
        digests={name: digest for name, digest in digests.items() if digest is not None},
        device=place.device_facts,
    )
