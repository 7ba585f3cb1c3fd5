"""Policy, PRM and critic of the settings, around modules of this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from priml.batch import TokenScores
from priml.config.algorithm import MaskOverlong
from priml.config.models import CustomPrm as CustomPrmSettings
from priml.config.models import Optimizer as OptimizerSettings
from priml.config.models import Prm as PrmSettings
from priml.config.train import TrainConfig
from priml.factories.algorithm import build_surrogate
from priml.factories.device import DeviceSpec
from priml.factories.models import (
    add_adapters_to,
    add_policy_adapters,
    check_output_rows,
    check_same_vocabulary,
    copy_module,
    export_dtype,
    folder_writer,
    is_policy_model,
    lasting_source,
    load_like_policy,
)
from priml.learners.base import Prm
from priml.learners.critic import LocalCritic
from priml.learners.custom_prm import CustomPrm
from priml.learners.engine import Scorer, TorchEngine
from priml.learners.optimizer import Optimizer
from priml.learners.policy import LocalPolicy, Objective
from priml.learners.prm import ImplicitPrm
from priml.learners.prm_losses import prm_loss
from priml.learners.reference import FrozenReference, Reference, RolloutReference
from priml.learners.replay import Replay
from priml.models.load import check_tokens_fit, checkpoint_activations, load_critic, load_model
from priml.models.prm_card import EXPORTED_POLICY
from priml.plugins import load, naming_failures
from priml.types import Tokenizer


@dataclass(frozen=True, slots=True)
class Learners:
    """The trainable roles of a process, or their absence."""

    policy: LocalPolicy
    prm: Prm | None
    critic: LocalCritic | None

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of the weights by role. With several ranks a collective."""
        roles = {"policy": self.policy, "prm": self.prm, "critic": self.critic}
        found = {name: role.digest() for name, role in roles.items() if role}
        return {name: digest for name, digest in found.items() if digest is not None}


def load_learners(
    cfg: TrainConfig, tokenizer: Tokenizer, device: DeviceSpec, used: Iterable[Sequence[int]]
) -> Learners:
    """Load the models on this device. `used` are the token ids that the prompts use.

    Raises:
        ConfigError: peft is not installed, and a model is to have adapters.
        ModelError: a model does not fit the others, or the tokens.
    """
    module = device.load(load_model, cfg.policy.model, trust_remote_code=cfg.policy.trust_remote_code)
    check_tokens_fit(cfg.policy.model, module, tokenizer, used)
    implicit = build_prm(cfg, cfg.implicit_prm, module, tokenizer, device) if cfg.implicit_prm else None
    policy = build_policy(cfg, module, tokenizer, device, prm=implicit)
    prm = build_custom_prm(cfg.prm, tokenizer) if isinstance(cfg.prm, CustomPrmSettings) else implicit
    return Learners(policy, prm, build_critic(cfg, module, tokenizer, device))


def build_custom_prm(settings: CustomPrmSettings, tokenizer: Tokenizer) -> CustomPrm:
    """The user's process reward model."""
    function = load(settings.function, setting="prm.function", takes=("batch", "tokenizer"))
    label = f"prm.function: {settings.function}"
    return CustomPrm(naming_failures(label)(function), tokenizer, name=label)


def build_policy(
    cfg: TrainConfig,
    module: PreTrainedModel,
    tokenizer: Tokenizer,
    device: DeviceSpec,
    *,
    prm: ImplicitPrm | None = None,
) -> LocalPolicy:
    """The policy around its model. A KL term takes the initial policy from the PRM's reference if that is the one."""
    initial = _initial_policy(cfg, module, device, prm) if cfg.loss.kl else None
    chosen, trust = cfg.policy.export_dtype, cfg.policy.trust_remote_code
    dtype = export_dtype(chosen, cfg.policy.model, trust_remote_code=trust)
    add_policy_adapters(cfg, module)
    if cfg.policy.gradient_checkpointing:
        checkpoint_activations(module)
    return LocalPolicy(
        TorchEngine(
            device.model(module),
            tokenizer,
            build_optimizer(module, "policy", cfg.policy.optimizer),
            write=folder_writer(cfg.policy.lora, dtype),
        ),
        mini_batch=cfg.policy.mini_batch,
        epochs=cfg.policy.epochs,
        temperature=cfg.sampling.temperature,
        objective=build_objective(cfg),
        seed=cfg.seed,
        initial=initial,
        skip_truncated=isinstance(cfg.overlong, MaskOverlong),
        scores_in_update=not cfg.scores_policy_first,
    )


def _initial_policy(
    cfg: TrainConfig, module: PreTrainedModel, device: DeviceSpec, prm: ImplicitPrm | None
) -> Scorer[TokenScores]:
    """The frozen policy as it is before any training."""
    settings = cfg.implicit_prm
    if settings is not None and prm is not None and isinstance(prm.reference, FrozenReference):
        source = settings.init if settings.reference == "initial" else settings.reference
        if is_policy_model(source, cfg):
            return prm.reference.model
    return device.model(copy_module(module, device, share=cfg.policy.lora is not None).requires_grad_(False))


def build_objective(cfg: TrainConfig) -> Objective:
    """What the policy minimises."""
    loss = cfg.loss
    chosen = Objective(
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        aggregate=loss.aggregate,
        surrogate=build_surrogate(loss.surrogate),
        dual_clip=loss.dual_clip,
        constant_length=cfg.sampling.max_new_tokens,
        entropy_bonus=loss.entropy_bonus,
    )
    if loss.kl:
        chosen = replace(chosen, kl_weight=loss.kl.weight, kl_estimator=loss.kl.estimator)
    if loss.importance and (cfg.sampler.holds_own_weights or cfg.sampling.max_staleness):
        chosen = replace(chosen, importance_level=loss.importance.level, importance_cap=loss.importance.cap)
    return chosen


def build_prm(
    cfg: TrainConfig, settings: PrmSettings, initial: PreTrainedModel, tokenizer: Tokenizer, device: DeviceSpec
) -> ImplicitPrm:
    """The PRM and its reference. Each has its own copy of the weights that it trains; frozen weights may be shared.

    Raises:
        ConfigError: peft is not installed, and the PRM is to have adapters.
        ModelError: its vocabulary, or that of its reference, is not the policy's; or the layers that are to have
            adapters do not exist.
    """
    is_frozen = settings.lora is not None
    module = load_like_policy("prm.init", settings.init, cfg, initial, tokenizer, device, frozen=is_frozen)
    reference: Reference
    source = settings.init if settings.reference == "initial" else settings.reference
    lasting = lasting_source(cfg.policy.model if source == "initial" else source)
    if settings.reference == "policy":
        lasting = EXPORTED_POLICY
        reference = RolloutReference(temperature=cfg.sampling.temperature)
    else:
        if settings.reference == "initial" and (is_frozen or not is_policy_model(source, cfg)):
            frozen = copy_module(module, device, share=is_frozen)
        else:
            frozen = load_like_policy("prm.reference", source, cfg, initial, tokenizer, device, frozen=True)
        reference = FrozenReference(device.model(frozen.requires_grad_(False)))
    base = cfg.policy.model if settings.init == "initial" else settings.init
    add_adapters_to("prm.lora", settings.lora, module, base=base, seed=cfg.seed)
    if cfg.policy.gradient_checkpointing:
        checkpoint_activations(module)
    return ImplicitPrm(
        TorchEngine(
            device.model(module),
            tokenizer,
            build_optimizer(module, "PRM", settings.optimizer),
            write=folder_writer(settings.lora),
        ),
        reference=reference,
        forward=settings.forward,
        loss=prm_loss(settings.loss.kind),
        replay=Replay(settings.replay.passes, settings.replay.keep, cfg.seed) if settings.replay else None,
        beta=None if settings.beta == "auto" else settings.beta,
        granularity=settings.granularity,
        mini_batch=settings.mini_batch,
        epochs=settings.epochs,
        reference_source=lasting,
    )


def build_critic(
    cfg: TrainConfig, initial: PreTrainedModel, tokenizer: Tokenizer, device: DeviceSpec
) -> LocalCritic | None:
    """The critic of PPO; None without one.

    Raises:
        ModelError: its vocabulary is not the policy's, or its architecture cannot be one.
    """
    settings, trust = cfg.critic, cfg.policy.trust_remote_code
    if settings is None:
        return None
    source = settings.init
    if source == "initial":
        source = cfg.policy.model
    else:
        check_same_vocabulary("critic.init", cfg, tokenizer, source)
    module = device.load(load_critic, source, trust_remote_code=trust)
    check_output_rows("critic.init", source, module, initial, tokenizer)
    if cfg.policy.gradient_checkpointing:
        checkpoint_activations(module)
    return LocalCritic(
        TorchEngine(device.value_model(module), tokenizer, build_optimizer(module, "critic", settings.optimizer)),
        clip=settings.clip,
        mini_batch=settings.mini_batch,
        epochs=settings.epochs,
        seed=cfg.seed,
    )


def build_optimizer(module: PreTrainedModel, role: str, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of a role."""
    return Optimizer(
        module,
        role=role,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )
