"""Models of a run: loaded or copied, checked against the policy, with adapters if so set."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from priml.config.models import ExportDtype, Lora
from priml.config.train import TrainConfig
from priml.errors import ConfigError, ModelError
from priml.factories.device import DeviceSpec
from priml.learners.replay import replay_bytes
from priml.models.checkpoint import save_model
from priml.models.load import check_positions, load_model, load_tokenizer, stored_dtype
from priml.models.lora import add_adapters, frozen_twin, import_peft, save_adapter
from priml.types import Tokenizer


def load_like_policy(
    key: str,
    source: str,
    cfg: TrainConfig,
    initial: PreTrainedModel,
    tokenizer: Tokenizer,
    device: DeviceSpec,
    *,
    frozen: bool,
) -> PreTrainedModel:
    """A model with the policy's tokens: a copy of the initial policy, or one loaded from elsewhere.

    `frozen`: only adapters, if any, are trained. Then the weights may be shared with a policy that has adapters.
    """
    if is_policy_model(source, cfg):
        return copy_module(initial, device, share=frozen and cfg.policy.lora is not None)
    trust = cfg.policy.trust_remote_code
    check_same_vocabulary(key, cfg, tokenizer, source)
    module = device.load(load_model, source, trust_remote_code=trust)
    check_output_rows(key, source, module, initial, tokenizer)
    return module


def copy_module(module: PreTrainedModel, device: DeviceSpec, *, share: bool) -> PreTrainedModel:
    """A copy of a module. It shares the weights if `share`, unless models are sharded: that replaces the weights."""
    return frozen_twin(module) if share and device.shard is None else copy.deepcopy(module)


def is_policy_model(source: str, cfg: TrainConfig) -> bool:
    """Whether a role that starts from `source` starts from the initial policy."""
    return source in ("initial", cfg.policy.model)


def check_lengths(cfg: TrainConfig, longest: int) -> None:
    """Refuse sequences of `longest` tokens where a model of the run has fewer positions; only shapes are read.

    Raises:
        ModelError: a model has too few, or cannot be loaded.
    """
    sources = {"policy.model": cfg.policy.model}
    if prm := cfg.implicit_prm:
        sources |= {"prm.init": prm.init, "prm.reference": prm.reference}
    if cfg.critic:
        sources["critic.init"] = cfg.critic.init
    checked = {"initial", "policy"}
    for key, source in sources.items():
        if source not in checked:
            checked.add(source)
            module = load_model(source, device=torch.device("meta"), trust_remote_code=cfg.policy.trust_remote_code)
            shorten = "data.prompt.max_prompt_tokens or sampling.max_new_tokens"
            check_positions(f"{key}: {source}", module, longest, shorten=shorten)


def check_replay(cfg: TrainConfig, longest: int, *, processes: int = 1) -> None:
    """Refuse to keep more responses of `longest` tokens, in each of so many processes, than this machine can hold.

    Raises:
        ConfigError: it cannot.
    """
    replay = cfg.implicit_prm.replay if cfg.implicit_prm else None
    if replay is None:
        return
    needed = processes * replay_bytes(replay.keep, longest)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        kept = f"{replay.keep:,} responses of up to {longest:,} tokens"
        raise ConfigError(
            f"prm.replay.keep: {kept}, in each of {processes} processes, may take {needed:,} bytes, and this machine "
            f"has {memory:,}; lower prm.replay.keep or sampling.max_new_tokens"
        )


def add_policy_adapters(cfg: TrainConfig, module: PreTrainedModel) -> None:
    """Add the policy's adapters, if the settings have any. They are the same on every rank and sampler.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the layers that are to have adapters do not exist.
    """
    add_adapters_to("policy.lora", cfg.policy.lora, module, base=cfg.policy.model, seed=cfg.seed)


def add_adapters_to(key: str, settings: Lora | None, module: PreTrainedModel, *, base: str, seed: int) -> None:
    """Add low-rank adapters, if the settings of the role say so. `key` names these settings in errors."""
    if settings is not None:
        chosen = {"rank": settings.rank, "alpha": settings.alpha, "targets": settings.targets}
        add_adapters(module, key=key, base=lasting_source(base), seed=seed, **chosen)


def check_adapters(cfg: TrainConfig) -> None:
    """Fail before models are loaded if adapters are wanted and cannot be made.

    Raises:
        ConfigError: peft is not installed.
    """
    if cfg.policy.lora or (cfg.implicit_prm and cfg.implicit_prm.lora):
        import_peft()


def folder_writer(
    settings: Lora | None, dtype: torch.dtype = torch.float32
) -> Callable[[PreTrainedModel, Tokenizer, Path], None]:
    """The function that exports a trained module and its tokenizer to a folder; whole weights in `dtype`."""
    return save_adapter if settings is not None and settings.export == "adapter" else partial(save_model, dtype=dtype)


def export_dtype(chosen: ExportDtype, source: str, *, trust_remote_code: bool) -> torch.dtype:
    """The type of exported weights of a model that began as `source`."""
    if chosen == "auto":
        return stored_dtype(source, trust_remote_code=trust_remote_code)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[chosen]


def lasting_source(source: str) -> str:
    """The absolute path of a model folder; a Hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def check_same_vocabulary(key: str, cfg: TrainConfig, tokenizer: Tokenizer, source: str) -> None:
    """Refuse a model whose tokenizer has other tokens than the policy's."""
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


def check_output_rows(
    key: str, source: str, module: PreTrainedModel, initial: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    """Refuse a model without an output row for each token id of the policy. More rows are padding and do no harm."""
    rows, policy_rows = (len(cast(Tensor, m.get_input_embeddings().weight)) for m in (module, initial))
    needed = min(policy_rows, max(tokenizer.get_vocab().values()) + 1)
    if rows < needed:
        raise ModelError(
            f"{key}: {source} has {rows} output tokens, the policy {needed}; its tokens need as many: "
            f"use {key}: initial or a model of the same family"
        )
