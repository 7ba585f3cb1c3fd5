import sys

import pytest

from fakes import tiny_config
from priml.errors import ConfigError
from priml.factories.models import check_adapters


def test_without_peft_a_run_with_adapters_ends_before_models_are_loaded(tmp_path, warm_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    check_adapters(tiny_config(tmp_path, warm_model))
    for override in ("policy.lora={rank: 4}", "prm.lora={rank: 4}"):
        with pytest.raises(ConfigError, match=r"pip install 'priml\[lora\]'"):
            check_adapters(tiny_config(tmp_path, warm_model, override))
