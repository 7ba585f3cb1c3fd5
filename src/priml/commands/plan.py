"""`priml plan`: settings, a machine and the shape of a model become a plan. No weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from priml.config.data import ChainSource, TinyCodeSource, WalkSource
from priml.config.models import Lora
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.factories.models import check_replay
from priml.planner.batch import Lengths, expected_share, plan_batch
from priml.planner.facts import ModelFacts, Shape
from priml.planner.job import Job, Model, frozen_roles, training_shape
from priml.planner.layout import Layout, build_layout, settle
from priml.planner.machine import PRESETS, Device, Machine
from priml.planner.plan import Plan, make_plan
from priml.planner.trace import model_facts, read_config

_PER_NODE = 8
"""Devices in a node, where no option gives their number."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The options of the command line; None: not given."""

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


def run_plan(cfg: TrainConfig, options: PlanOptions, *, settings: Path) -> tuple[Plan, str]:
    """The plan, and where its facts come from.

    Raises:
        UsageError: the machine makes no sense, or the shape of a model cannot be read.
    """
    machine = build_machine(cfg, options)
    cfg, remarks = settle(cfg, machine)
    layout = build_layout(cfg)
    lengths = expected_lengths(cfg, options)
    if options.device is None:  # planned for this machine
        check_replay(cfg, lengths.longest, processes=min(layout.ranks, machine.per_node))
    share = expected_share(cfg) if options.pass_rate is None or cfg.filter is None else options.pass_rate
    precision = _precision(cfg, machine)
    source = model_source(cfg, options, settings)
    read = _reader(cfg, source, training_shape(cfg, lengths, precision, layout))
    job = Job(
        cfg=cfg,
        models=tuple(_models(cfg, layout, read)),
        lengths=lengths,
        batch=plan_batch(cfg, lengths, share, layout.ranks),
        machine=machine,
        layout=layout,
        precision=precision,
        remarks=remarks,
    )
    shown_source = str(settings) if source == cfg.policy.model else f"{settings}, the model's shape from {source}"
    return make_plan(job), shown_source


def _models(cfg: TrainConfig, layout: Layout, read: Callable[[str, Lora | None], ModelFacts]) -> Iterator[Model]:
    """Every role with a model. On one device, frozen weights from the same source are in memory once: those beneath
    the adapters of policy and PRM, and those of the frozen models."""
    one_device, initial = not layout.is_sharded, ("initial", cfg.policy.model)
    beneath_policy = one_device and cfg.policy.lora is not None
    yield Model("policy", read("initial", cfg.policy.lora), is_trained=True)
    beneath_prm = False
    if prm := cfg.implicit_prm:
        beneath_prm = one_device and prm.lora is not None
        shares = beneath_policy and beneath_prm and prm.init in initial
        yield Model("PRM", read(prm.init, prm.lora), prm.forward != "frozen", shares_weights=shares)
    for role, name in frozen_roles(cfg).items():
        shares = beneath_policy and name in initial
        if role == "reference" and prm and prm.reference == "initial":
            shares = shares or beneath_prm
        yield Model(role, read(name, None), is_trained=False, shares_weights=shares)
    if cfg.critic:
        yield Model("critic", read(cfg.critic.init, None).as_critic, is_trained=True)


def model_source(cfg: TrainConfig, options: PlanOptions, settings: Path) -> str:
    """Where the policy's config.json is: in the options, the model's folder, beside the settings, or on the Hub."""
    if options.model_config is not None:
        if not options.model_config.exists():
            raise UsageError(f"--model-config: {options.model_config} does not exist; need a config.json or its folder")
        return str(options.model_config)
    beside = settings.parent / "config.json"
    if not Path(cfg.policy.model).is_dir() and beside.is_file():
        return str(beside)
    return cfg.policy.model


def expected_lengths(cfg: TrainConfig, options: PlanOptions) -> Lengths:
    """Means from the options; those of the procedural tasks; or half of the limit for responses, a quarter for
    prompts."""
    longest_prompt, longest = cfg.data.prompt.max_prompt_tokens, cfg.sampling.max_new_tokens
    prompt, response = longest_prompt / 4, longest / 2
    match cfg.data.train:
        case ChainSource() | WalkSource() as task:
            longest_prompt = min(longest_prompt, task.length + 2)
            response = min(float(task.response_tokens), longest)
            prompt = longest_prompt
        case TinyCodeSource(length=length):
            longest_prompt, response = min(longest_prompt, length + 1), min(34 + 7.5 * length, longest)
            prompt = longest_prompt
        case _:
            pass
    for name, mean, limit in (
        ("--prompt-tokens", options.prompt_tokens, longest_prompt),
        ("--response-tokens", options.response_tokens, longest),
    ):
        if mean is not None and mean > limit:
            raise UsageError(f"{name}: found {mean:g}, need a mean of at most the limit in the settings, {limit}")
    return Lengths(options.prompt_tokens or prompt, options.response_tokens or response, longest_prompt, longest)


def build_machine(cfg: TrainConfig, options: PlanOptions) -> Machine:
    """The machine asked for, or the one this is; where no number of devices is given, with as many as the settings ask
    for, eight in a node.

    Raises:
        UsageError: an unknown preset.
    """
    device = _device(cfg, options)
    needed, nodes, per_node = build_layout(cfg).devices, options.nodes, options.gpus
    if per_node is None:
        if nodes == 1 and device.name != "cpu":
            nodes = -(-needed // _PER_NODE)
        per_node = -(-needed // nodes)
    if device.name == "cpu":  # the part of this machine that each process has
        processes = per_node if options.gpus is None else 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        rate = device.fp32_tflops * _cores() / processes
        device = replace(device, memory_gib=round(memory / processes, 1), fp32_tflops=rate, bf16_tflops=rate)
    changes: dict[str, Any] = {
        "memory_gib": options.gpu_memory,
        "bf16_tflops": options.tflops,
        "fp32_tflops": options.tflops,
        "bandwidth": options.bandwidth,
        "link": options.link,
        "network": options.network,
    }
    device = replace(device, **{name: value for name, value in changes.items() if value is not None})
    return Machine(device, per_node=per_node, nodes=nodes)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(cfg: TrainConfig, options: PlanOptions) -> Device:
    if options.device is not None:
        if options.device not in PRESETS:
            raise UsageError(f"--device: found {options.device!r}, need one of {', '.join(PRESETS)}")
        return PRESETS[options.device]
    if options.gpus or options.gpu_memory or options.nodes > 1:
        return PRESETS["h100"]
    if cfg.backend.device == "cpu":
        return PRESETS["cpu"]
    if not torch.cuda.is_available():  # more ranks than processors here are meant for a cluster
        return PRESETS["cpu" if build_layout(cfg).devices <= _cores() else "h100"]
    properties = torch.cuda.get_device_properties(0)
    known = [device for name, device in PRESETS.items() if name in properties.name.lower().replace(" ", "")]
    return replace((known or [PRESETS["a100"]])[0], memory_gib=round(properties.total_memory / 2**30, 1))


def _precision(cfg: TrainConfig, machine: Machine) -> str:
    if cfg.backend.precision != "auto":
        return cfg.backend.precision
    return "fp32" if machine.device.name == "cpu" else "bf16"


def _reader(cfg: TrainConfig, policy: str, shape: Shape) -> Callable[[str, Lora | None], ModelFacts]:
    """Facts by source and adapters, each read once; `initial` is the policy."""

    known: dict[tuple[str, Lora | None], ModelFacts] = {}
    trust = cfg.policy.trust_remote_code

    def read(source: str, lora: Lora | None) -> ModelFacts:
        key = policy if source in ("initial", cfg.policy.model) else source, lora
        if key not in known:
            config = read_config(key[0], trust_remote_code=trust)
            known[key] = model_facts(key[0], config, replace(shape, adapters=lora), trust_remote_code=trust)
        return known[key]

    return read
