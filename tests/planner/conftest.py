"""A seven-billion model in numbers, settings, and a job made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from architectures import model_folders
from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.planner.batch import Lengths, expected_share, plan_batch
from priml.planner.facts import Footprint, ModelFacts
from priml.planner.job import Job, Model, frozen_roles
from priml.planner.layout import build_layout, settle
from priml.planner.machine import PRESETS, Machine

GIB = 2**30

QWEN_7B = ModelFacts(
    name="qwen2.5-7b",
    parameters=7_615_616_512,
    body=6_525_621_760,
    active=6_525_621_760,
    head=544_997_376,
    embedding=544_997_376,
    tied=False,
    layers=28,
    largest_block=233_057_792,
    width=3584,
    vocabulary=152_064,
    cache=28_672,
    cache_bytes=86_016,
    state_bytes=0,
    positions=131_072,
    is_bound=False,
    largest_matrix=544_997_376,
    footprint=Footprint(training=8 * GIB, scoring=2 * GIB, frozen=2 * GIB, reading=120_000.0),
)


def settings(**changes: Any) -> TrainConfig:
    tree = {
        "run_dir": "run",
        "policy": {"model": "m"},
        "advantage": {"preset": "authors"},  # the PRM of the paper, with three models
        "data": {"train": {"kind": "file", "path": "problems.jsonl"}},
    }
    return parse_config(TrainConfig, tree | changes, where="test")


def build_job(
    cfg: TrainConfig | None = None,
    machine: Machine | None = None,
    *,
    facts: ModelFacts = QWEN_7B,
    share: float | None = None,
    response: float = 1536.0,
) -> Job:
    machine = machine or Machine(PRESETS["h100"], per_node=8)
    cfg, remarks = settle(cfg or settings(), machine)
    layout = build_layout(cfg)
    lengths = Lengths(256.0, response, cfg.data.prompt.max_prompt_tokens, cfg.sampling.max_new_tokens)
    models = [Model("policy", facts, is_trained=True)]
    if cfg.prm:
        models.append(Model("PRM", replace(facts), is_trained=cfg.prm.forward != "frozen"))
    models += [Model(role, facts, is_trained=False) for role in frozen_roles(cfg)]
    if cfg.critic:
        models.append(Model("critic", facts, is_trained=True))
    batch = plan_batch(cfg, lengths, expected_share(cfg) if share is None else share, layout.ranks)
    return Job(cfg, tuple(models), lengths, batch, machine, layout, "bf16", remarks)


@pytest.fixture(scope="session")
def make_settings() -> Callable[..., TrainConfig]:
    return settings


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    return build_job


@pytest.fixture(scope="session")
def qwen_7b() -> ModelFacts:
    return QWEN_7B


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return model_folders(tmp_path_factory)
