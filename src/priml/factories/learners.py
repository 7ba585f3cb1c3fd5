"""From the settings of models, roles and sampler to the objects, on this machine's device."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from priml.config import rollout as sampler_settings
from priml.config.algorithm import MaskOverlong
from priml.config.backend import LocalBackend, RayBackend
from priml.config.models import Lora, Prm
from priml.config.models import Optimizer as OptimizerSettings
from priml.config.train import TrainConfig
from priml.data.chat import step_ends
from priml.distributed.process_group import ProcessGroup, SingleProcess
from priml.errors import ConfigError, ModelError
from priml.learners.base import Critic, NoCritic
from priml.learners.critic import LocalCritic
from priml.learners.optimizer import Optimizer
from priml.learners.policy import LocalPolicy, Objective
from priml.learners.prm import ImplicitPrm, NoPrm
from priml.learners.prm_losses import prm_loss
from priml.learners.reference import FrozenReference, Reference, RolloutReference
from priml.models.checkpoint import save_model
from priml.models.forward import LanguageModel, TokenModel, ValueModel
from priml.models.load import checkpoint_activations, load_critic, load_model, load_tokenizer
from priml.models.lora import add_adapters, frozen_twin, import_peft, save_adapter
from priml.rollout.base import Sampler
from priml.rollout.transformers import TransformersSampler
from priml.types import Prompt

if TYPE_CHECKING:
    from priml.rollout.vllm import VllmSampler

M = TypeVar("M", bound=TokenModel)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The device and the arithmetic of this process."""

    device: torch.device
    precision: str
    micro_batch_tokens: int
    process_group: ProcessGroup = field(default_factory=SingleProcess)
    """Who works on the same batch."""
    shard: Callable[[TokenModel], None] | None = None
    """What spreads a model over the process group."""

    @property
    def device_facts(self) -> dict[str, str]:
        """For the manifest."""
        on_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else platform.processor() or "cpu"
        return {"kind": self.device.type, "name": name, "precision": self.precision}

    @property
    def loads_on(self) -> torch.device:
        """Where models are loaded: sharding moves them to the device piece by piece, from the first rank to all."""
        if self.shard is None:
            return self.device
        return torch.device("cpu" if self.process_group.rank == 0 else "meta")

    def model(self, module: nn.Module) -> LanguageModel:
        """A module as a language model here. Its optimizer, if any, is made afterwards: sharding replaces weights."""
        return self._settled(LanguageModel(module, **self._arithmetic))

    def value_model(self, module: nn.Module) -> ValueModel:
        """A token classifier as a value model here."""
        return self._settled(ValueModel(module, **self._arithmetic))

    @property
    def _arithmetic(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("device", "precision", "micro_batch_tokens", "process_group")}

    def _settled(self, model: M) -> M:
        if self.shard is not None:
            self.shard(model)
        return model


def resolve_device(backend: LocalBackend | RayBackend) -> DeviceSpec:
    """Resolve `auto` device and precision; also keeps the progress bars of transformers out of ours.

    Raises:
        ConfigError: the device does not exist here.
    """
    transformers_logging.disable_progress_bar()
    name = backend.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"backend.device: found {backend.device!r}, which does not work here ({reason}); use auto or cpu"
        ) from None
    precision = backend.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return DeviceSpec(device=device, precision=precision, micro_batch_tokens=backend.micro_batch_tokens)


def build_optimizer(module: nn.Module, role: str, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of a role."""
    return Optimizer(
        module,
        role=role,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )


def build_policy(
    cfg: TrainConfig, module: nn.Module, tokenizer: Any, place: DeviceSpec, *, prm: ImplicitPrm | NoPrm | None = None
) -> LocalPolicy:
    """The policy around its model. A KL term takes the initial policy from the PRM's reference if that is the one."""
    initial = _initial_policy(cfg, module, place, prm) if cfg.loss.kl else None
    add_policy_adapters(cfg, module)
    if cfg.policy.gradient_checkpointing:
        checkpoint_activations(module)
    return LocalPolicy(
        place.model(module),
        tokenizer,
        build_optimizer(module, "policy", cfg.policy.optimizer),
        mini_batch=cfg.policy.mini_batch,
        epochs=cfg.policy.epochs,
        temperature=cfg.sampling.temperature,
        objective=build_objective(cfg),
        seed=cfg.seed,
        initial=initial,
        skip_truncated=isinstance(cfg.overlong, MaskOverlong),
        write=_writer(cfg.policy.lora),
    )


def add_policy_adapters(cfg: TrainConfig, module: nn.Module) -> None:
    """What the policy trains instead of its weights, if the settings say so; the same on every rank and sampler.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the layers that are to have adapters do not exist.
    """
    _add_adapters("policy.lora", cfg.policy.lora, module, base=cfg.policy.model, seed=cfg.seed)


def build_objective(cfg: TrainConfig) -> Objective:
    """What the policy minimises."""
    loss = cfg.loss
    chosen = Objective(
        clip_low=loss.clip_low,
        clip_high=loss.clip_high,
        aggregate=loss.aggregate,
        surrogate=loss.surrogate,
        dual_clip=loss.dual_clip,
        constant_length=cfg.sampling.max_new_tokens,
        entropy_bonus=loss.entropy_bonus,
    )
    if loss.kl:
        chosen = replace(chosen, kl_weight=loss.kl.weight, kl_estimator=loss.kl.estimator)
    if loss.importance and not isinstance(cfg.sampler, sampler_settings.TransformersSampler):
        chosen = replace(chosen, importance_level=loss.importance.level, importance_cap=loss.importance.cap)
    return chosen


def build_prm(cfg: TrainConfig, settings: Prm, initial: nn.Module, tokenizer: Any, place: DeviceSpec) -> ImplicitPrm:
    """The PRM and its reference. What they train is theirs alone; weights that nobody trains they may share.

    Raises:
        ConfigError: peft is not installed, and the PRM is to have adapters.
        ModelError: its vocabulary, or that of its reference, is not the policy's; or the layers that are to have
            adapters do not exist.
    """
    is_frozen = settings.lora is not None
    module = _like_policy("prm.init", settings.init, cfg, initial, tokenizer, place, frozen=is_frozen)
    reference: Reference
    source = settings.init if settings.reference == "initial" else settings.reference
    if settings.reference == "policy":
        reference = RolloutReference(temperature=cfg.sampling.temperature)
    else:
        if settings.reference == "initial" and (is_frozen or not _is_policys(source, cfg)):
            frozen = _copied(module, place, share=is_frozen)
        else:
            frozen = _like_policy("prm.reference", source, cfg, initial, tokenizer, place, frozen=True)
        reference = FrozenReference(place.model(frozen.requires_grad_(False)))
    base = cfg.policy.model if settings.init == "initial" else settings.init
    _add_adapters("prm.lora", settings.lora, module, base=base, seed=cfg.seed)
    if cfg.policy.gradient_checkpointing:
        checkpoint_activations(module)
    return ImplicitPrm(
        place.model(module),
        tokenizer,
        reference,
        build_optimizer(module, "PRM", settings.optimizer),
        forward=settings.forward,
        loss=prm_loss(settings.loss),
        beta=settings.beta,
        granularity=settings.granularity,
        mini_batch=settings.mini_batch,
        epochs=settings.epochs,
        reference_source=lasting(cfg.policy.model if source == "initial" else source),
        write=_writer(settings.lora),
    )


def build_critic(cfg: TrainConfig, initial: nn.Module, tokenizer: Any, place: DeviceSpec) -> Critic:
    """The critic of PPO, or its absence.

    Raises:
        ModelError: its vocabulary is not the policy's, or its architecture cannot be one.
    """
    settings, trust = cfg.critic, cfg.policy.trust_remote_code
    if settings is None:
        return NoCritic()
    source = settings.init
    if source == "initial":
        source = cfg.policy.model
    else:
        _check_same_vocabulary("critic.init", cfg, tokenizer, source)
    module = load_critic(source, device=place.loads_on, trust_remote_code=trust)
    _check_rows("critic.init", source, module, initial, tokenizer)
    if cfg.policy.gradient_checkpointing:
        checkpoint_activations(module)
    return LocalCritic(
        place.value_model(module),
        tokenizer,
        build_optimizer(module, "critic", settings.optimizer),
        clip=settings.clip,
        mini_batch=settings.mini_batch,
        epochs=settings.epochs,
        seed=cfg.seed,
    )


def lasting(source: str) -> str:
    """A model folder as it can be found from any folder; a Hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _initial_policy(
    cfg: TrainConfig, module: nn.Module, place: DeviceSpec, prm: ImplicitPrm | NoPrm | None
) -> LanguageModel:
    """The frozen policy as it is before any training."""
    settings = cfg.prm
    if settings is not None and isinstance(prm, ImplicitPrm) and isinstance(prm.reference, FrozenReference):
        source = settings.init if settings.reference == "initial" else settings.reference
        if _is_policys(source, cfg):
            return prm.reference.model
    return place.model(_copied(module, place, share=cfg.policy.lora is not None).requires_grad_(False))


def _like_policy(
    key: str, source: str, cfg: TrainConfig, initial: nn.Module, tokenizer: Any, place: DeviceSpec, *, frozen: bool
) -> nn.Module:
    """A model that reads the policy's tokens: a copy of its initial weights, or one loaded from elsewhere. `frozen`:
    its weights will not be trained, adapters apart, so that they may be the policy's own if that has adapters too."""
    if _is_policys(source, cfg):
        return _copied(initial, place, share=frozen and cfg.policy.lora is not None)
    trust = cfg.policy.trust_remote_code
    _check_same_vocabulary(key, cfg, tokenizer, source)
    module = load_model(source, device=place.loads_on, trust_remote_code=trust)
    _check_rows(key, source, module, initial, tokenizer)
    return module


def _is_policys(source: str, cfg: TrainConfig) -> bool:
    return source in ("initial", cfg.policy.model)


def _copied(module: nn.Module, place: DeviceSpec, *, share: bool) -> nn.Module:
    """A copy, with the very same weights if nobody trains them. A sharded module must have its own: it lets go of what
    it was given, piece by piece."""
    return frozen_twin(module) if share and place.shard is None else copy.deepcopy(module)


def _add_adapters(key: str, settings: Lora | None, module: nn.Module, *, base: str, seed: int) -> None:
    if settings is not None:
        chosen = {"rank": settings.rank, "alpha": settings.alpha, "targets": settings.targets}
        add_adapters(module, key=key, base=lasting(base), seed=seed, **chosen)


def _writer(settings: Lora | None) -> Callable[[nn.Module, Any, Path], None]:
    """What makes a folder of a trained module and its tokenizer."""
    return save_adapter if settings is not None and settings.export == "adapter" else save_model


def _check_same_vocabulary(key: str, cfg: TrainConfig, tokenizer: Any, source: str) -> None:
    ours = tokenizer.get_vocab()
    theirs = load_tokenizer(source, trust_remote_code=cfg.policy.trust_remote_code).get_vocab()
    if ours == theirs:
        return
    differing = next((t for t in ours if theirs.get(t) != ours[t]), None) or next(t for t in theirs if t not in ours)
    raise ModelError(
        f"{key}: {source} and policy.model: {cfg.policy.model} have different vocabularies "
        f"({len(theirs)} and {len(ours)} tokens; {differing!r} is {theirs.get(differing)} and {ours.get(differing)}); "
        f"token rewards need the same one: use {key}: initial or a model of the same family"
    )


def _check_rows(key: str, source: str, module: nn.Module, initial: nn.Module, tokenizer: Any) -> None:
    """Sizes of one family pad their embeddings differently; all that counts is a row for each id the policy can use."""
    rows, policy_rows = (m.get_input_embeddings().weight.shape[0] for m in (module, initial))  # pyright: ignore[reportCallIssue]
    needed = min(policy_rows, max(tokenizer.get_vocab().values()) + 1)
    if rows < needed:
        raise ModelError(
            f"{key}: {source} has {rows} output tokens, the policy {needed}; its tokens need as many: "
            f"use {key}: initial or a model of the same family"
        )


def check_sampler(settings: sampler_settings.Sampler, backend: LocalBackend | RayBackend) -> None:
    """Find out whether an engine of this process can be imported before models are loaded, which may take long.

    Raises:
        ConfigError: it cannot; the message says what to type.
    """
    if isinstance(settings, sampler_settings.VllmSampler) and isinstance(backend, LocalBackend):
        from priml.rollout.vllm import import_vllm

        import_vllm()


def check_adapters(cfg: TrainConfig) -> None:
    """Find out whether adapters can be made before models are loaded.

    Raises:
        ConfigError: peft is not installed.
    """
    if cfg.policy.lora or (cfg.prm and cfg.prm.lora):
        import_peft()


def build_sampler(
    settings: sampler_settings.Sampler,
    module: nn.Module,
    tokenizer: Any,
    place: DeviceSpec,
    *,
    longest: int,
    lora: Lora | None = None,
) -> Sampler:
    """The sampler, speaking with the weights of `module`, which has adapters if there is `lora`. `longest`: tokens of
    the longest prompt and its response.

    Raises:
        ConfigError: the engine is not installed, or cannot be used here.
        ModelError: it cannot sample from this model.
    """
    if isinstance(settings, sampler_settings.TransformersSampler):
        return TransformersSampler(
            module, tokenizer, device=place.device, precision=place.precision, max_rows=settings.max_rows
        )
    if place.device.index:
        raise ConfigError(
            f"backend.device: found {place.device}, and vLLM takes the first device that it sees; set backend.device: "
            f"cuda, and start with CUDA_VISIBLE_DEVICES={place.device.index}"
        )
    engine = build_vllm_engine(settings, module, tokenizer, place.precision, longest=longest, lora=lora)
    engine.verify_weight_sync_with(module)
    return engine


def build_vllm_engine(
    settings: sampler_settings.VllmSampler,
    module: nn.Module,
    tokenizer: Any,
    precision: str,
    *,
    longest: int,
    lora: Lora | None,
) -> VllmSampler:
    """The engine for a module of this architecture, before `verify_weight_sync`. `precision`: the trainer's.

    Raises:
        ConfigError: the engine is not installed, or cannot be used here.
    """
    from priml.rollout.vllm import VllmSampler

    return VllmSampler(
        module,
        tokenizer,
        precision=precision,
        longest=longest,
        max_rows=settings.max_rows,
        kv_cache_gib=settings.kv_cache_gib,
        dtype=settings.dtype,
        tensor_parallel=settings.tensor_parallel,
        enforce_eager=settings.enforce_eager,
        sleep=settings.sleep,
        probe_bound=settings.probe_bound,
        adapter_rank=lora.rank if lora and settings.adapters == "apart" else None,
    )


def step_end_finder(cfg: TrainConfig, tokenizer: Any) -> Callable[[Sequence[int]], list[int]]:
    """Finds the tokens of a response that end a step, as the PRM is to see them."""
    return partial(step_ends, tokenizer=tokenizer, pattern=cfg.prm.step_pattern if cfg.prm else r"\n")


def longest_sequence(prompts: Iterable[Prompt], max_new_tokens: int) -> int:
    """Tokens of the longest of these prompts with the longest response to it."""
    return max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens
