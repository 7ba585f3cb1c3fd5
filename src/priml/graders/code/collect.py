"""Run one test function or one method of a test class as pytest and unittest run it. Runs inside a sandbox.

Of pytest this is `parametrize`, `setup_method` and `teardown_method`; tests with fixtures have been refused already. Of
unittest it is all.
"""

import inspect
import itertools
import unittest
from collections.abc import Callable, Iterator
from typing import Any

Skipped = unittest.SkipTest
"""What a test raises that does not want to be run here."""


def run_collected(owner: Callable[..., Any], method: str | None = None) -> None:
    """Run the function `owner`, or a method of the class `owner`. A test that fails raises."""
    if method is None:
        _run_cases(owner)
    elif isinstance(owner, type) and issubclass(owner, unittest.TestCase):
        unittest.TestSuite([owner(method)]).debug()
    else:
        instance = owner()
        for name in ("setup_class", "setup_method"):
            _call_hook(instance, name)
        try:
            _run_cases(getattr(instance, method))
        finally:
            for name in ("teardown_method", "teardown_class"):
                _call_hook(instance, name)


def _run_cases(function: Callable[..., Any]) -> None:
    for arguments in _cases(function):
        function(**arguments)


def _cases(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each call: all combinations of what `pytest.mark.parametrize` says, or none."""
    axes = [list(_axis(*mark.args[:2])) for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    for parts in itertools.product(*axes):
        yield {name: value for part in parts for name, value in part.items()}


def _axis(names: str | list[str], rows: list[Any]) -> Iterator[dict[str, Any]]:
    columns = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for row in rows:
        values = row.values if hasattr(row, "marks") else row  # of `pytest.param`
        if len(columns) == 1 and values is row:
            values = [row]
        yield dict(zip(columns, values, strict=True))


def _call_hook(instance: object, name: str) -> None:
    function = getattr(instance, name, None)
    if function is not None:
        function(*[None] * len(inspect.signature(function).parameters))
