"""`priml plan`: settings, a machine and the shape of a model become a plan. No weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from priml.config.parts import ChainSource, TinyCodeSource, WalkSource
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.models.facts import model_facts, read_config
from priml.plan.batch import Lengths, expected_share, plan_batch
from priml.plan.facts import ModelFacts
from priml.plan.job import Job, Model, frozen_roles, training_shape
from priml.plan.machine import PRESETS, Device, Machine
from priml.plan.plan import Plan, make_plan


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says beside the settings; None: not said."""

    gpus: int | None = None
    """Devices per node."""
    nodes: int = 1
    device: str | None = None
    """Name of a preset."""
    gpu_memory: float | None = None
    """GiB of one device."""
    tflops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    network: float | None = None
    prompt_tokens: float | None = None
    response_tokens: float | None = None
    pass_rate: float | None = None
    model_config: Path | None = None
    """Stands for the config.json of the policy."""


def run_plan(cfg: TrainConfig, asked: Asked, *, settings: Path) -> tuple[Plan, str]:
    """The plan, and where its facts come from.

    Raises:
        UsageError: the machine makes no sense, or the shape of a model cannot be read.
    """
    machine = machine_of(cfg, asked)
    lengths = lengths_of(cfg, asked)
    share = expected_share(cfg) if asked.pass_rate is None or cfg.filter is None else asked.pass_rate
    precision = _precision(cfg, machine)
    source = model_source(cfg, asked, settings)
    read = _reader(cfg, source, lengths, precision, machine)
    policy = read("initial")
    models = [Model("policy", policy, is_trained=True)]
    if cfg.prm:
        models.append(Model("PRM", read(cfg.prm.init), is_trained=cfg.prm.forward != "frozen"))
    models += [Model(role, read(name), is_trained=False) for role, name in frozen_roles(cfg).items()]
    if cfg.critic:
        models.append(Model("critic", read(cfg.critic.init), is_trained=True))
    batch = plan_batch(cfg, lengths, share, machine.ranks)
    job = Job(cfg, tuple(models), lengths, batch, machine, precision)
    told = str(settings) if source == cfg.policy.model else f"{settings}, the model's shape from {source}"
    return make_plan(job), told


def model_source(cfg: TrainConfig, asked: Asked, settings: Path) -> str:
    """Where the policy's config.json is: as told; the model's folder; a copy beside the settings; or the Hub."""
    if asked.model_config is not None:
        if not asked.model_config.exists():
            raise UsageError(f"--model-config: {asked.model_config} does not exist; need a config.json or its folder")
        return str(asked.model_config)
    beside = settings.parent / "config.json"
    if not Path(cfg.policy.model).is_dir() and beside.is_file():
        return str(beside)
    return cfg.policy.model


def lengths_of(cfg: TrainConfig, asked: Asked) -> Lengths:
    """Means as told; those of the procedural tasks; or half of the limit for responses, a quarter for prompts."""
    longest_prompt, longest = cfg.data.prompt.max_prompt_tokens, cfg.sampling.max_new_tokens
    prompt, response = longest_prompt / 4, longest / 2
    match cfg.data.train:
        case ChainSource(length=length) | WalkSource(length=length):
            longest_prompt, response = min(longest_prompt, length + 2), min(length + 4.0, longest)
            prompt = longest_prompt
        case TinyCodeSource(length=length):
            longest_prompt, response = min(longest_prompt, length + 1), min(34 + 7.5 * length, longest)
            prompt = longest_prompt
        case _:
            pass
    for name, mean, limit in (
        ("--prompt-tokens", asked.prompt_tokens, longest_prompt),
        ("--response-tokens", asked.response_tokens, longest),
    ):
        if mean is not None and mean > limit:
            raise UsageError(f"{name}: found {mean:g}, need a mean of at most the limit in the settings, {limit}")
    return Lengths(asked.prompt_tokens or prompt, asked.response_tokens or response, longest_prompt, longest)


def machine_of(cfg: TrainConfig, asked: Asked) -> Machine:
    """The machine asked for, or the one this is.

    Raises:
        UsageError: an unknown preset.
    """
    device = _device(cfg, asked)
    if device.name == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        rate = device.fp32_tflops * cores
        device = replace(device, memory_gib=round(memory, 1), fp32_tflops=rate, bf16_tflops=rate)
    changes: dict[str, Any] = {
        "memory_gib": asked.gpu_memory,
        "bf16_tflops": asked.tflops,
        "fp32_tflops": asked.tflops,
        "bandwidth": asked.bandwidth,
        "link": asked.link,
        "network": asked.network,
    }
    device = replace(device, **{name: value for name, value in changes.items() if value is not None})
    return Machine(device, per_node=asked.gpus or 1, nodes=asked.nodes)


def _device(cfg: TrainConfig, asked: Asked) -> Device:
    if asked.device is not None:
        if asked.device not in PRESETS:
            raise UsageError(f"--device: found {asked.device!r}, need one of {', '.join(PRESETS)}")
        return PRESETS[asked.device]
    if asked.gpus or asked.gpu_memory or asked.nodes > 1:
        return PRESETS["h100"]
    if cfg.backend.device == "cpu" or not torch.cuda.is_available():
        return PRESETS["cpu"]
    properties = torch.cuda.get_device_properties(0)
    known = [device for name, device in PRESETS.items() if name in properties.name.lower().replace(" ", "")]
    return replace((known or [PRESETS["a100"]])[0], memory_gib=round(properties.total_memory / 2**30, 1))


def _precision(cfg: TrainConfig, machine: Machine) -> str:
    if cfg.backend.precision != "auto":
        return cfg.backend.precision
    return "fp32" if machine.device.name == "cpu" else "bf16"


def _reader(
    cfg: TrainConfig, policy: str, lengths: Lengths, precision: str, machine: Machine
) -> Callable[[str], ModelFacts]:
    """Facts by source, each read once; `initial` is the policy."""
    shape = training_shape(cfg, lengths, precision, machine)
    known: dict[str, ModelFacts] = {}

    def read(source: str) -> ModelFacts:
        place = policy if source in ("initial", cfg.policy.model) else source
        if place not in known:
            trust = cfg.policy.trust_remote_code
            config = read_config(place, trust_remote_code=trust)
            known[place] = model_facts(place, config, shape, trust_remote_code=trust)
        return known[place]

    return read
