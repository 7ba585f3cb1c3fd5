"""What benchmarks on the chain task share: arguments, warm start, settings, parts of a step, the file of results."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from priml.batch import Batch
from priml.commands.sft import run_sft
from priml.config.load import parse_config
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.data.stream import ProblemStream
from priml.factories.algorithm import build_collect_spec
from priml.factories.data import load_prompts, load_source
from priml.factories.device import DeviceSpec, resolve_device
from priml.factories.graders import build_verifier
from priml.factories.rollout import build_sampler, longest_sequence, step_end_finder
from priml.files import write_json
from priml.graders.pool import VerifierPool
from priml.models.load import load_model, load_tokenizer
from priml.rollout.base import Sampler
from priml.runs.manifest import versions
from priml.training.collectors import collect_groups
from priml.training.records import LocalRecords
from priml.types import Group

BACKEND = {"device": "cpu", "micro_batch_tokens": 2048}  # as in examples/laptop-math: small enough for a CPU's cache


@dataclass(frozen=True)
class Setup:
    """A task, its warm start and the size of a step."""

    task: Mapping[str, Any]
    sft: Mapping[str, Any]
    """Supervised examples (`count`) and learning rate (`lr`)."""
    prompts: int
    group_size: int
    problems: int
    """How many the run can draw from."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of a training run, where they are not those of `examples/laptop-math`."""


LAPTOP = Setup(
    task={"kind": "chain", "length": 15, "doubtful": 0.15, "wrong": [0.3, 0.7]},
    sft={"count": 32000, "lr": 2e-3},
    prompts=32,
    group_size=8,
    problems=16384,
)
"""That of `make quickstart`."""

TOY = Setup(
    task={**LAPTOP.task, "length": 4},
    sft={"count": 4800, "lr": 4e-3},
    prompts=8,
    group_size=8,
    problems=512,
    settings={"filter": None},
)
"""For `--quick`: enough to see every part work, not to measure anything. It solves too little to wait for a filter."""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="toy size, under a minute")
    parser.add_argument("--models", type=Path, default=Path("runs/benchmarks/models"), help="warm starts are kept here")
    return parser


def write_results(path: Path, name: str, *, rows: Sequence[Mapping[str, Any]], headline: Mapping[str, Any]) -> None:
    """Every measurement and the few numbers that the documentation quotes; the latter are printed too."""
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": BACKEND["device"],
        "platform": platform.platform(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path, {"name": name, "versions": versions(), "machine": machine, "headline": headline, "rows": list(rows)}
    )
    print(json.dumps(headline, indent=1))


def warm_start(setup: Setup, models: Path, *, seed: int) -> Path:
    """The supervised model of a setup, made once. `seed` also decides which facts its teacher gets wrong."""
    tree = {
        "model": {"kind": "tiny"},
        "seed": seed,
        "data": {**setup.task, "split": "train", "count": setup.sft["count"], "seed": seed},
        "epochs": 1,
        "batch": 64,
        "optimizer": {"lr": setup.sft["lr"], "betas": [0.9, 0.99]},
        "backend": BACKEND,
    }
    folder = models / hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
    if not (folder / "model").exists():
        run_sft(parse_config(SftConfig, tree | {"run_dir": str(folder)}, where="warm start"))
    return folder / "model"


def train_config(setup: Setup, model: Path, *, seed: int, **changes: Any) -> TrainConfig:
    """The settings of `examples/laptop-math` with PRIME as published, on fresh problems with the facts of `warm_start`.

    `changes` replace top-level parts; a changed `policy` keeps the model.
    """
    tree = {
        "run_dir": "unused",
        "seed": seed,
        "policy": {"model": str(model), "optimizer": {"lr": 3e-4, "weight_decay": 0.0}, "mini_batch": None},
        "prm": {"beta": "auto", "optimizer": {"lr": 1e-4}, "mini_batch": None},
        "advantage": {"preset": "authors"},  # PRIME as published
        "sampling": {"group_size": setup.group_size, "max_new_tokens": setup.task["length"] + 17},
        "batch": {"prompts": setup.prompts},
        "data": {"train": {**setup.task, "split": "train", "count": setup.problems, "seed": seed}},
        "backend": BACKEND,
        **setup.settings,
        **changes,
    }
    tree["policy"] = {"model": str(model), **tree["policy"]}
    return parse_config(TrainConfig, tree, where="benchmark")


@dataclass(frozen=True)
class Parts:
    """What a training step needs, the trainable roles apart."""

    device: DeviceSpec
    tokenizer: Any
    module: nn.Module
    """The policy's."""
    stream: ProblemStream
    sampler: Sampler
    verify: VerifierPool
    collate: Callable[[Sequence[Group], int], Batch]


def assemble(cfg: TrainConfig) -> Parts:
    """Make them; every call loads weights of its own."""
    device = resolve_device(cfg.backend)
    tokenizer = load_tokenizer(cfg.policy.model)
    module = load_model(cfg.policy.model, device=device.device)
    prompts = load_prompts(load_source(cfg.data.train), tokenizer, cfg.data.prompt)
    return Parts(
        device=device,
        tokenizer=tokenizer,
        module=module,
        stream=ProblemStream(prompts, seed=cfg.seed),
        sampler=build_sampler(
            cfg.sampler, module, tokenizer, device, longest=longest_sequence(prompts, cfg.sampling.max_new_tokens)
        ),
        verify=VerifierPool(build_verifier(cfg.verify, [p.problem for p in prompts]).verifier),
        collate=LocalRecords(step_end_finder(cfg, tokenizer)).collate,
    )


def collect(parts: Parts, cfg: TrainConfig, step: int) -> list[Group]:
    """Sample and filter as the training loop does, up to the point where something would learn."""
    return collect_groups(step, parts.sampler, parts.verify, parts.stream, build_collect_spec(cfg)).kept
