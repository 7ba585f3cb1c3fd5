from __future__ import annotations

import pytest

from priml.config.load import parse_config
from priml.config.train import TrainConfig
from priml.errors import ConfigError

MINIMAL = {"run_dir": "r", "policy": {"model": "m"}, "data": {"train": {"kind": "chain"}}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"lr": 1e-6},
            "lr: unknown key; did you mean critic.optimizer.lr or policy.optimizer.lr or prm.optimizer.lr?",
        ),
        ({"prm": {"lr": 1e-6}}, "prm.lr: unknown key; did you mean prm.optimizer.lr?"),
        ({"beta": 0.1}, "beta: unknown key; did you mean prm.beta?"),
        ({"num_generations": 8}, "num_generations: unknown key; TRL's num_generations is sampling.group_size"),
        (
            {"actor_rollout_ref": {"actor": {"optim": {"lr": 1e-6}}, "rollout": {"n": 4, "mine": 1}}},
            "actor_rollout_ref: unknown key; verl's actor_rollout_ref.actor.optim.lr is policy.optimizer.lr; verl's "
            "actor_rollout_ref.rollout.n is sampling.group_size",
        ),
        ({"filter": False}, "filter: found false, need a mapping of settings; write null to switch it off"),
        ({"steps": False}, "steps: found false, need an integer"),
    ],
)
def test_a_key_of_another_place_or_program_is_named(settings: dict[str, object], said: str):
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, MINIMAL | settings, where="train.yaml")
    assert str(caught.value) == f"train.yaml: {said}"
