"""Settings of environments."""

import pytest
from pydantic import TypeAdapter, ValidationError

from priml.config.environments import CustomEnvironment, Environment, PythonEnvironment

ANY: TypeAdapter[Environment] = TypeAdapter(Environment)


def test_the_kind_chooses_the_environment():
    assert isinstance(ANY.validate_python({"kind": "python"}), PythonEnvironment)
    custom = ANY.validate_python({"kind": "custom", "function": "tool.py:Tool", "max_turns": 2})
    assert isinstance(custom, CustomEnvironment)
    assert custom.max_turns == 2


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "python", "max_turns": 0},
        {"kind": "python", "role": "assistant"},
        {"kind": "python", "time_limit": 0},
        {"kind": "python", "function": "tool.py:Tool"},
        {"kind": "custom"},
        {"kind": "custom", "function": "tool.py"},
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object]):
    with pytest.raises(ValidationError):
        ANY.validate_python(given)
