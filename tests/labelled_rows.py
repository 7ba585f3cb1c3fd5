"""Labelled responses that a tiny model learns to tell apart in seconds, and the settings for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from priml.config.load import parse_config
from priml.config.prm import PrmTrainConfig

PROMPTS = tuple(f"{state}{first}{second}=" for state in range(4) for first in "ABC" for second in "ABC")
RESPONSES = (("1\n2\\boxed{2}", True), ("3\n2\\boxed{3}", False), ("3\n1\\boxed{3}", False), ("1\n3\\boxed{4}", False))
"""Right exactly with both lines right; the wrong first line is the more frequent mistake, and its answer the most
frequent one."""


def make_rows(prompts: Sequence[str]) -> list[dict[str, Any]]:
    """All responses to each prompt."""
    return [
        {"prompt": prompt, "response": text, "label": label, "gold": "2"}
        for prompt in prompts
        for text, label in RESPONSES
    ]


def make_pairs(prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The right response to each prompt against each wrong one."""
    right = RESPONSES[0][0]
    return [{"prompt": p, "chosen": right, "rejected": text} for p in prompts for text, _ in RESPONSES[1:]]


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prm_settings(model: Path, data: Path, run_dir: Path, **changes: Any) -> PrmTrainConfig:
    """A run of a second."""
    settings = {
        "run_dir": str(run_dir),
        "model": str(model),
        "data": {"path": str(data)},
        "held_out": {"share": 0.2, "every": 4},
        "beta": 0.5,
        "batch": 16,
        "epochs": 2,
        "optimizer": {"lr": 1e-2},
        "backend": {"device": "cpu"},
        **changes,
    }
    return parse_config(PrmTrainConfig, settings, where="test")
