from collections.abc import Iterator
from pathlib import Path

from priml.config.base import Settings
from priml.config.document import COMMANDS, keys, page
from priml.config.schema import settings_in

ROOT = Path(__file__).resolve().parents[2]


def all_settings(schema: type[Settings]) -> Iterator[type[Settings]]:
    yield schema
    for field in schema.model_fields.values():
        for option in settings_in(field.annotation):
            yield from all_settings(option)


def test_the_page_in_docs_is_what_the_schemas_say():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == page(), "run: .venv/bin/python -m priml.config.document docs/configuration.md"


def test_a_new_setting_is_a_decision():
    """The list is checked in: who adds a key writes it down there, in the same change."""
    listed = (Path(__file__).parent / "settings.txt").read_text().splitlines()
    assert listed == [f"{command}: {key}" for command, schema in COMMANDS.items() for key in keys(schema)]


def test_every_key_has_a_meaning():
    without = [
        f"{schema.__name__}.{name}"
        for command in COMMANDS.values()
        for schema in all_settings(command)
        for name, field in schema.model_fields.items()
        if not field.description and name != "kind"
    ]
    assert without == []


def test_the_page_tells_type_bounds_default_and_choices():
    text = page()
    assert "| `steps` | integer > 0 | `592` |" in text
    assert "| `beta` | number > 0 or `auto` | `0.05` |" in text
    assert "| `low` | number >= 0 and <= 1 | `0.2` |" in text
    assert "| `prm` | [Prm](#prm) or [CustomPrm](#customprm) or null | as there |" in text
    assert "| `weight_decay` | number >= 0 | `0.01` |" in text
