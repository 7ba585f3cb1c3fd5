"""Load a user's own code, named in the settings as `my_rewards.py:grade` or `package.module:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from priml.errors import UsageError


def load(spec: str, *, setting: str) -> Callable[..., Any]:
    """Return the function or class that `spec` names.

    `spec` is `FILE.py:NAME` or `PACKAGE.MODULE:NAME`. A file is run once in a process, even when several settings name
    it. `setting` is the key of the setting, such as `verify.function`; error messages start with it.

    Raises:
        UsageError: `spec` has another form, or there is no such file, module or function.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name.isidentifier():
        raise UsageError(
            f"{setting}={spec!r} does not name a function; "
            "write 'my_file.py:function' (a file) or 'package.module:function'."
        )
    module = _load_file(Path(source), setting) if source.endswith(".py") else _load_module(source, setting)
    found = vars(module).get(name)
    if not callable(found):
        raise UsageError(
            f"{setting}={spec!r}: {source} has no function {name!r} "
            f"(it defines: {', '.join(_defined_in(module)) or 'none'}); correct the name after the colon."
        )
    return found


def _load_file(path: Path, setting: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(
            f"{setting}: there is no file {path} (looked in {Path.cwd()}); "
            "give its path relative to where the command is started, or the absolute one."
        )
    path = path.resolve()
    name = f"priml_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module must not be found by the next caller
        raise
    return module


def _load_module(name: str, setting: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there, and something it imports is not
        raise UsageError(
            f"{setting}: no module named {error.name!r}; install the package that holds it, or name a file: "
            "'path/to/file.py:function'."
        ) from error


def _defined_in(module: ModuleType) -> list[str]:
    """Functions and classes of the module's own, without what it imports and without private names."""
    return sorted(
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
