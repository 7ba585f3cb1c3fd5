"""From the settings of models, roles, sampler and verifier to the objects, on this machine's device."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from priml.config import parts
from priml.config.train import TrainConfig
from priml.errors import ConfigError, ModelError
from priml.models.forward import LanguageModel
from priml.models.load import load_model, load_tokenizer
from priml.roles.optim import Stepper
from priml.roles.policy import LocalPolicy
from priml.roles.prm import FrozenReference, ImplicitPrm, Reference, RolloutReference
from priml.rollout.transformers import TransformersSampler
from priml.verify.custom import load_custom
from priml.verify.math import MathVerifier
from priml.verify.pool import ByKind, VerifierPool


@dataclass(frozen=True, slots=True)
class Place:
    """The device and the arithmetic of this process."""

    device: torch.device
    precision: str
    micro_batch_tokens: int

    def model(self, module: nn.Module) -> LanguageModel:
        """A module as a language model here."""
        return LanguageModel(
            module, device=self.device, precision=self.precision, micro_batch_tokens=self.micro_batch_tokens
        )


def place_of(backend: parts.LocalBackend) -> Place:
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
    return Place(device=device, precision=precision, micro_batch_tokens=backend.micro_batch_tokens)


def stepper_of(module: nn.Module, role: str, settings: parts.Optimizer) -> Stepper:
    """The optimizer of a role."""
    return Stepper(
        module,
        role=role,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )


def policy_of(cfg: TrainConfig, module: nn.Module, tokenizer: Any, place: Place) -> LocalPolicy:
    """The policy around its model."""
    if cfg.policy.gradient_checkpointing:
        module.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    return LocalPolicy(
        place.model(module),
        tokenizer,
        stepper_of(module, "policy", cfg.policy.optimizer),
        mini_batch=cfg.policy.mini_batch,
        epochs=cfg.policy.epochs,
        temperature=cfg.sampling.temperature,
        clip_low=cfg.loss.clip_low,
        clip_high=cfg.loss.clip_high,
        aggregate=cfg.loss.aggregate,
        seed=cfg.seed,
    )


def prm_of(cfg: TrainConfig, settings: parts.Prm, initial: nn.Module, tokenizer: Any, place: Place) -> ImplicitPrm:
    """The PRM and its reference, with weights of their own.

    Raises:
        ModelError: its vocabulary is not the policy's.
    """
    if settings.init == "initial":
        module = copy.deepcopy(initial)
    else:
        trust = cfg.policy.trust_remote_code
        theirs = load_tokenizer(settings.init, trust_remote_code=trust)
        _check_same_vocabulary(cfg.policy.model, tokenizer, settings.init, theirs)
        module = load_model(settings.init, device=place.device, trust_remote_code=trust)
        sizes = [m.get_output_embeddings().weight.shape[0] for m in (initial, module)]  # pyright: ignore
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"prm.init: {settings.init} has {sizes[1]} output tokens, the policy {sizes[0]}; token rewards need "
                "the same number: use prm.init: initial or a model of the same family"
            )
    reference: Reference = (
        RolloutReference(temperature=cfg.sampling.temperature)
        if settings.reference == "policy"
        else FrozenReference(place.model(copy.deepcopy(module).requires_grad_(False)))
    )
    if cfg.policy.gradient_checkpointing:
        module.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    return ImplicitPrm(
        place.model(module),
        tokenizer,
        reference,
        stepper_of(module, "PRM", settings.optimizer),
        forward=settings.forward,
        loss=settings.loss,
        beta=settings.beta,
        granularity=settings.granularity,
        mini_batch=settings.mini_batch,
        epochs=settings.epochs,
    )


def _check_same_vocabulary(policy: str, policy_tokenizer: Any, prm: str, prm_tokenizer: Any) -> None:
    ours, theirs = policy_tokenizer.get_vocab(), prm_tokenizer.get_vocab()
    if ours == theirs:
        return
    differing = next((t for t in ours if theirs.get(t) != ours[t]), None) or next(t for t in theirs if t not in ours)
    raise ModelError(
        f"prm.init: {prm} and policy.model: {policy} have different vocabularies "
        f"({len(theirs)} and {len(ours)} tokens; {differing!r} is {theirs.get(differing)} and {ours.get(differing)}); "
        "token rewards need the same one: use prm.init: initial or a model of the same family"
    )


def sampler_of(
    settings: parts.TransformersSampler, module: nn.Module, tokenizer: Any, place: Place
) -> TransformersSampler:
    """The sampler, speaking with the live weights of `module`."""
    return TransformersSampler(
        module, tokenizer, device=place.device, precision=place.precision, max_rows=settings.max_rows
    )


def verifier_of(settings: parts.Verify) -> VerifierPool:
    """The verifier, lifted to groups. Rows of a kind it cannot judge are refused by name."""
    if isinstance(settings, parts.CustomVerifier):
        return VerifierPool(load_custom(settings.function))
    math = MathVerifier(workers=settings.workers, limit_s=settings.time_limit, rules=settings.rules)
    return VerifierPool(ByKind({"math": math}))
