"""Load a user's own code, named in the settings as `my_rewards.py:grade` or `package.module:name`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from priml.errors import PrimlError, UsageError


def load(spec: str, *, setting: str, takes: Sequence[str]) -> Callable[..., Any]:
    """Return the function or class that `spec` names.

    `spec` is `FILE.py:NAME` or `PACKAGE.MODULE:NAME`. A file is run once in a process, even when several settings name
    it. It can import the files beside it. `setting` is the key of the setting, such as `verify.function`; error
    messages start with it. `takes` names the arguments that it will be called with.

    Raises:
        UsageError: `spec` has another form, there is no such file, module or function, importing it fails, or the
            function cannot be called so.
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
    _check_signature(found, f"{setting}: {spec}", takes)
    return found


@contextlib.contextmanager
def naming_failures(name: str) -> Iterator[None]:
    """Turn what a user's code raises into one sentence with the place. Serves as a decorator, too.

    Raises:
        UsageError: `name` failed; the cause has the traceback.
    """
    try:
        yield
    except PrimlError:
        raise
    except (Exception, SystemExit) as error:  # a script that ends itself would end the run with its exit code
        raise UsageError(f"{name} fails: {type(error).__name__}: {_message(error)} ({failing_line(error)})") from error


def failing_line(error: BaseException) -> str:
    """File and line of the last call in code that is not installed; the very last one where there is none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    return _in_own_code(frames[::-1])


def dumped_line(stacks: str) -> str:
    """The same from what `faulthandler` wrote of a process that has ended; empty if it wrote nothing."""
    frames = re.findall(r'^  File "(.*)", line (\d+) in ', stacks, re.MULTILINE)
    return _in_own_code(frames) if frames else ""


def _in_own_code(frames: Sequence[tuple[str, object]]) -> str:
    """`frames`: file and line of each call, the latest first."""
    installed = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")
    own = [frame for frame in frames if not frame[0].startswith(installed)] or frames
    return f"{own[0][0]}, line {own[0][1]}"


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
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a file of the user's named `types.py` hides nothing
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        with naming_failures(f"{setting}: importing {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module must not be found by the next caller
        raise
    return module


def _load_module(name: str, setting: str) -> ModuleType:
    try:
        with naming_failures(f"{setting}: importing {name}"):
            return importlib.import_module(name)
    except UsageError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError) or not f"{name}.".startswith(f"{missing.name}."):
            raise  # the module is there, and importing it fails
        raise UsageError(
            f"{setting}: no module named {missing.name!r}; install the package that holds it, or name a file: "
            "'path/to/file.py:function'."
        ) from missing


def _check_signature(function: Callable[..., Any], name: str, takes: Sequence[str]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C
        return
    try:
        signature.bind(*takes)
    except TypeError as error:
        raise UsageError(
            f"{name}{signature} cannot be called with ({', '.join(takes)}): {error}; "
            "give it these arguments, in this order."
        ) from None


def _message(error: BaseException) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _defined_in(module: ModuleType) -> list[str]:
    """Functions and classes of the module's own, without what it imports and without private names."""
    return sorted(
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
