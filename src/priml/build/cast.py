"""Who plays the roles of a training run: objects of this process, or stand-ins for Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from priml.build.data import Say
from priml.build.roles import Place, critic_of, longest_of, place_of, policy_of, prm_of, sampler_of, step_ends_of
from priml.build.verifiers import verifier_of
from priml.config import parts
from priml.config.train import TrainConfig
from priml.models.checkpoint import weights_digest
from priml.models.load import check_tokens_fit, load_model
from priml.roles.base import Critic, NoCritic, Policy, Prm
from priml.roles.policy import LocalPolicy
from priml.roles.prm import ImplicitPrm, NoPrm
from priml.rollout.base import Sampler
from priml.telemetry.timing import Clock
from priml.train.records import LocalRecords, Records
from priml.types import Prompt
from priml.verify.base import Verifier
from priml.verify.pool import THREADS


def _nothing() -> None:
    """There is nothing to let go of."""


def _no_idle(elapsed_s: float) -> dict[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Cast:
    """The roles of a run, whoever plays them."""

    policy: Policy
    prm: Prm
    critic: Critic
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
        return clock.wrap(self.policy, "policy", {"recall": "policy", "update": "policy"})

    def timed_critic(self, clock: Clock) -> Critic:
        """The critic on the clock, if there is one."""
        if isinstance(self.critic, NoCritic):
            return self.critic
        return clock.wrap(self.critic, "critic", {"recall": "critic", "update": "critic"})

    def timed_prm(self, clock: Clock) -> Prm:
        """The PRM on the clock; its reference, if there is one here, apart from it."""
        if isinstance(self.prm, NoPrm):
            return self.prm
        if isinstance(self.prm, ImplicitPrm):
            self.prm.reference = clock.wrap(self.prm.reference, "reference", {"logprobs": "reference"})
        return clock.wrap(self.prm, "prm", {"update": "prm", "rewards": "prm"})


def cast_of(cfg: TrainConfig, tokenizer: Any, prompts: Sequence[Prompt], say: Say) -> Cast:
    """The roles where the settings put them. `prompts` are all of the run, those of its evaluation included.

    Raises:
        UsageError: something the settings name is missing, or does not fit.
    """
    if isinstance(cfg.backend, parts.RayBackend):
        from priml.build.cluster import cast_on_ray

        return cast_on_ray(cfg, cfg.backend, tokenizer, prompts, say)
    return _cast_here(cfg, place_of(cfg.backend), tokenizer, prompts, say)


def _cast_here(cfg: TrainConfig, place: Place, tokenizer: Any, prompts: Sequence[Prompt], say: Say) -> Cast:
    judge = verifier_of(cfg.verify, [p.problem for p in prompts], say)
    module = load_model(cfg.policy.model, device=place.device, trust_remote_code=cfg.policy.trust_remote_code)
    check_tokens_fit(cfg.policy.model, module, tokenizer, (p.token_ids for p in prompts))
    prm = prm_of(cfg, cfg.prm, module, tokenizer, place) if cfg.prm else NoPrm()
    policy = policy_of(cfg, module, tokenizer, place, prm=prm)
    critic = critic_of(cfg, module, tokenizer, place)
    longest = longest_of(prompts, cfg.sampling.max_new_tokens)
    digests = {"policy": weights_digest(module), "prm": prm.digest(), "critic": critic.digest()}
    return Cast(
        policy=policy,
        prm=prm,
        critic=critic,
        sampler=sampler_of(cfg.sampler, module, tokenizer, place, longest=longest, lora=cfg.policy.lora),
        verifier=judge.verifier,
        records=LocalRecords(step_ends_of(cfg, tokenizer)),
        isolation=judge.isolation,
        digests={name: digest for name, digest in digests.items() if digest is not None},
        device=place.device_facts,
    )
