from pathlib import Path
from typing import Any

import pytest

from priml.config.load import dump_config, load_config, parse_config
from priml.config.prm import PrmEvaluateConfig, PrmRankConfig, PrmScoreConfig, PrmTrainConfig
from priml.errors import ConfigError

TRAIN = {"run_dir": "runs/prm", "model": "base", "data": {"path": "rows.jsonl"}}
PRM = {"model": "runs/prm/model"}


def train(**changes: Any) -> PrmTrainConfig:
    return parse_config(PrmTrainConfig, TRAIN | changes, where="test")


def test_the_defaults_are_the_papers():
    cfg = train()
    assert (cfg.beta, cfg.optimizer.lr, cfg.batch, cfg.epochs, cfg.max_response_tokens) == (0.05, 5e-7, 64, 1, 8192)
    assert cfg.loss.kind == "ce"


def test_the_losses_have_settings_of_their_own():
    assert train(loss={"kind": "kto", "desirable_weight": 1.3}).loss.model_dump()["desirable_weight"] == 1.3
    with pytest.raises(
        ConfigError, match=r"loss\.desirable_weight: not a key of this kind; it is one with loss\.kind=kto"
    ):
        train(loss={"kind": "nca", "desirable_weight": 1.3})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"kind": "kto"}, "batch": 1}, "batch: kto compares each response"),
        ({"held_out": {"share": 1.5}}, "held_out.share: found 1.5"),
        ({"held_out": {"data": {"file": "x"}}}, "held_out.data.file: unknown key"),
        ({"beta": "automatic"}, "beta: found 'automatic'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        train(**changes)


def test_a_step_pattern_must_be_a_regular_expression():
    tree = {"run_dir": "r", "prm": PRM, "data": {"path": "x"}, "steps": {"kind": "pattern", "pattern": "("}}
    with pytest.raises(ConfigError, match=r"steps\.pattern: not a regular expression"):
        parse_config(PrmScoreConfig, tree, where="test")


def test_a_threshold_comes_from_a_set_that_is_there():
    sets = {"gsm8k": {"kind": "process_bench", "path": "x"}}
    tree = {"run_dir": "r", "prm": PRM, "data": sets, "threshold": {"kind": "best_on", "data": "math"}}
    with pytest.raises(ConfigError, match=r"threshold\.data: found 'math', need one of the sets in data: gsm8k"):
        parse_config(PrmEvaluateConfig, tree, where="test")


@pytest.mark.parametrize(
    ("schema", "tree"),
    [
        (PrmTrainConfig, TRAIN | {"loss": {"kind": "kto"}, "held_out": {"data": {"path": "h.jsonl"}}}),
        (PrmScoreConfig, {"run_dir": "r", "prm": PRM, "data": {"path": "x"}, "steps": {"kind": "numbered"}}),
        (PrmRankConfig, {"run_dir": "r", "data": {"path": "x"}}),
        (
            PrmEvaluateConfig,
            {
                "run_dir": "r",
                "prm": PRM,
                "data": {"gsm8k": {"kind": "process_bench", "path": "x"}},
                "threshold": {"kind": "fixed", "value": 0.5},
                "training": {"math": "train.jsonl"},
            },
        ),
    ],
)
def test_resolved_settings_are_settings_again(tmp_path: Path, schema: Any, tree: dict[str, Any]):
    cfg = parse_config(schema, tree, where="test")
    (tmp_path / "config.yaml").write_text(dump_config(cfg))
    assert load_config(schema, tmp_path / "config.yaml") == cfg
