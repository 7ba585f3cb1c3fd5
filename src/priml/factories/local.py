"""All roles of a training run in this process."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from priml.config.models import CustomPrm
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_advantages
from priml.factories.components import Components
from priml.factories.custom import build_custom_prm
from priml.factories.device import DeviceSpec, resolve_device
from priml.factories.graders import build_verifier
from priml.factories.learners import build_critic, build_policy, build_prm
from priml.factories.rollout import build_sampler, longest_sequence, step_end_finder
from priml.learners.base import Prm
from priml.learners.prm import ImplicitPrm
from priml.models.checkpoint import weights_digest
from priml.models.load import check_tokens_fit, load_model
from priml.training.records import LocalRecords
from priml.types import Prompt, Tokenizer


def build_local_components(cfg: TrainConfig, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Components:
    """Load the models and the sampler on the device of the settings.

    Raises:
        UsageError: something that the settings name is missing, or does not fit.
    """
    place = resolve_device(cfg.backend)
    judge = build_verifier(cfg.verify, [p.problem for p in prompts])
    module = load_model(cfg.policy.model, device=place.device, trust_remote_code=cfg.policy.trust_remote_code)
    check_tokens_fit(cfg.policy.model, module, tokenizer, (p.token_ids for p in prompts))
    prm = _build_prm(cfg, module, tokenizer, place)
    policy = build_policy(cfg, module, tokenizer, place, prm=prm if isinstance(prm, ImplicitPrm) else None)
    critic = build_critic(cfg, module, tokenizer, place)
    longest = longest_sequence(prompts, cfg.sampling.max_new_tokens)
    digests = {
        "policy": weights_digest(module),
        "prm": prm.digest() if prm else None,
        "critic": critic.digest() if critic else None,
    }
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


def _build_prm(cfg: TrainConfig, module: nn.Module, tokenizer: Tokenizer, place: DeviceSpec) -> Prm | None:
    match cfg.prm:
        case None:
            return None
        case CustomPrm():
            return build_custom_prm(cfg.prm, tokenizer)
        case _:
            return build_prm(cfg, cfg.prm, module, tokenizer, place)
