import sys

import pytest

from fakes import tiny_config
from priml.errors import ConfigError
from priml.factories.models import check_adapters, check_replay


def test_without_peft_a_run_with_adapters_ends_before_models_are_loaded(tmp_path, warm_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    check_adapters(tiny_config(tmp_path, warm_model))
    for override in ("policy.lora={rank: 4}", "prm.lora={rank: 4}"):
        with pytest.raises(ConfigError, match=r"pip install 'priml\[lora\]'"):
            check_adapters(tiny_config(tmp_path, warm_model, override))


def test_more_kept_responses_than_the_host_holds_are_refused_with_the_bytes(tmp_path, warm_model):
    cfg = tiny_config(tmp_path, warm_model, "prm.replay={keep: 1000}")
    check_replay(cfg, longest=100)
    with pytest.raises(ConfigError, match=r"1,000 responses of up to 10,000,000,000 tokens.* 90,000,000,000,000 bytes"):
        check_replay(cfg, longest=10_000_000_000)
    check_replay(tiny_config(tmp_path / "none", warm_model, "prm.replay=null"), longest=10_000_000_000)
