"""The roles of a training run: objects of this process, or stand-ins for Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from priml.config.train import TrainConfig
from priml.factories.algorithm import build_advantages
from priml.factories.device import resolve_device
from priml.factories.environments import observed_tokens, with_environment
from priml.factories.graders import build_verifier
from priml.factories.learners import load_learners
from priml.factories.rollout import build_sampler, longest_sequence, step_end_finder
from priml.graders.base import Verifier
from priml.graders.pool import THREADS
from priml.learners.base import Critic, Policy, Prm
from priml.rollout.base import Sampler
from priml.rollout.weight_sync import WeightCopies
from priml.training.advantages import AdvantageEstimator
from priml.training.records import LocalRecords, Records
from priml.types import Prompt, Tokenizer

W = TypeVar("W")


def share_weights(weights: W, in_use: W | None) -> W:
    """For weights that never change, as those in Ray's object store, or that are read only between updates."""
    return weights


@dataclass(frozen=True, slots=True)
class Components:
    """The roles of a run. They fit each other: all take batches and tensors, or all take references to them."""

    policy: Policy[Any, Any, Any]
    prm: Prm[Any, Any] | None
    critic: Critic[Any, Any] | None
    advantages: AdvantageEstimator[Any, Any, Any]
    sampler: Sampler[Any]
    verifier: Verifier
    records: Records[Any]
    isolation: tuple[str, ...]
    """The isolation levels in which programs of responses run."""
    digests: Mapping[str, str]
    """sha256 of the initial weights by role."""
    device: Mapping[str, str]
    """What the roles compute on, for the manifest."""
    threads: int = THREADS
    """Responses that the verifier grades at once."""
    idle: Callable[[float], dict[str, float]] = lambda elapsed_s: {}
    """Metrics: the idle share of each pool of processes over the last so many seconds."""
    snapshot: Callable[[Any, Any], Any] = share_weights
    """(the policy's weights, those that the sampler reads) -> weights that stay as they are while training goes on."""
    close: Callable[[], None] = lambda: None
    """End the processes, if there are any."""


def build_local_components(cfg: TrainConfig, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Components:
    """Load the models and the sampler on the device of the settings. `prompts` are all of the run.

    Raises:
        UsageError: something that the settings name is missing, or does not fit.
    """
    device = resolve_device(cfg.backend)
    judge = build_verifier(cfg.verify, [p.problem for p in prompts])
    learners = load_learners(cfg, tokenizer, device, (p.token_ids for p in prompts))
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
    longest += observed_tokens(cfg.environment, tokenizer, cfg.data.prompt)
    module = learners.policy.weights()
    sampler = build_sampler(cfg.sampler, module, tokenizer, device, longest=longest, lora=cfg.policy.lora)
    return Components(
        policy=learners.policy,
        prm=learners.prm,
        critic=learners.critic,
        advantages=build_advantages(cfg),
        sampler=with_environment(sampler, cfg.environment, module, tokenizer, cfg.data.prompt),
        verifier=judge.verifier,
        records=LocalRecords(step_end_finder(cfg, tokenizer)),
        isolation=judge.isolation,
        digests=learners.digests,
        device=device.device_facts,
        snapshot=WeightCopies(module).snapshot if cfg.sampling.max_staleness else share_weights,
    )
