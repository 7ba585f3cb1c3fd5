"""docs/models.md is what the script that writes it finds out."""

import importlib.util
from pathlib import Path

import pytest

from sampling import SEED, tenth

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def load_script():
    spec = importlib.util.spec_from_file_location("models_page", ROOT / "tools" / "models_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
NAMES = [pytest.param(name, id=f"{name} of sample {SEED}") for name in tenth(script.NAMES)[::3]]


def test_the_page_has_all_architectures_and_every_column():
    rows = script.rows_in(PAGE)
    assert list(rows) == script.NAMES
    assert script.page_of(rows).partition("A tiny model")[2] == PAGE.partition("A tiny model")[2]  # but for versions


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_some_architectures_are_as_the_page_says(name):
    assert script.row(name) == script.rows_in(PAGE)[name]
