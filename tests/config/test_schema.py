from __future__ import annotations

import pytest

from priml.config.load import parse_config
from priml.config.train import TrainConfig

MINIMAL = {"run_dir": "r", "policy": {"model": "m"}, "data": {"train": {"kind": "chain"}}}


@pytest.mark.parametrize(
    ("key", "short", "meant"),
    [
        ("data", {"train": "rows.jsonl"}, {"train": {"kind": "file", "path": "rows.jsonl"}}),
        ("data", {"train": {"path": "rows.jsonl"}}, {"train": {"kind": "file", "path": "rows.jsonl"}}),
        ("data", {"train": "mine/rows.py:read"}, {"train": {"kind": "custom", "function": "mine/rows.py:read"}}),
        ("data", {"train": "chain"}, {"train": {"kind": "chain"}}),
        ("verify", "my_rewards.py:grade", {"kind": "custom", "function": "my_rewards.py:grade"}),
        ("verify", "choice", {"kind": "choice"}),
        ("verify", {"workers": 3}, {"kind": "math", "workers": 3}),
        (
            "verify",
            {"kind": "mixed", "kinds": {"math": "math", "code": {"kind": "code", "sandbox": "landlock"}}},
            {
                "kind": "mixed",
                "kinds": {"math": {"kind": "math"}, "code": {"kind": "code", "sandbox": {"kind": "landlock"}}},
            },
        ),
        ("overlong", "mask", {"kind": "mask"}),
        ("environment", "python", {"kind": "python"}),
        (
            "prm",
            {"loss": "pairwise", "optimizer": {"betas": [0.9, 0.99]}},
            {"kind": "implicit", "loss": {"kind": "pairwise"}, "optimizer": {"betas": [0.9, 0.99]}},
        ),
        ("evaluate", {"data": "held.parquet"}, {"data": {"kind": "file", "path": "held.parquet"}}),
    ],
)
def test_a_part_can_be_given_in_short(key: str, short: object, meant: object):
    assert parse_config(TrainConfig, MINIMAL | {key: short}, where="") == parse_config(
        TrainConfig, MINIMAL | {key: meant}, where=""
    )
