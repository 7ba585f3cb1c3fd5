import pytest

from priml.config.load import parse_config
from priml.config.prepare import DataPrepareConfig
from priml.errors import ConfigError

GIVEN = {"run_dir": "runs/x", "data": {"mine": {"kind": "file", "path": "rows.jsonl"}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {}}, "data: found .*, need at least 1 in it"),
        ({"rules": "papers"}, r"rules: found 'papers' .*did you mean 'paper'"),
        ({"dedup": {"jaccard": 0.5}}, r"dedup.jaccard: found 0.5 .*need a number greater than or equal to 0.7"),
        ({"decontaminate": {}}, "found neither suites nor data, need one of them"),
        ({"decontaminate": {"suites": ["math50"]}}, "did you mean 'math500'"),
        ({"difficulty": {"model": "m", "low": 0.9, "high": 0.1}}, "need low <= high, got low=0.9, high=0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config(DataPrepareConfig, GIVEN | settings, where="test")


def test_the_careful_rules_and_near_copies_are_the_default():
    cfg = parse_config(DataPrepareConfig, GIVEN, where="test")
    assert (cfg.rules, cfg.drawings, cfg.dedup and cfg.dedup.jaccard) == ("careful", "keep", 0.8)
    assert cfg.decontaminate is None
