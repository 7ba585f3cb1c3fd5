"""No isolation: a bare child process with resource limits. It must be asked for by name, and warns."""

from __future__ import annotations

import logging
from typing import Any

from priml.sandbox import interpreter
from priml.sandbox.base import Limits
from priml.sandbox.child import ChildSandbox, Launch

_log = logging.getLogger(__name__)
_WARNING = (
    "sandbox: unsafe-subprocess runs model-written code with your own rights: it can read and delete your files and "
    "use the network. Use `kind: auto` where `priml doctor` finds an isolation level."
)
_ANY_NUMBER = 1 << 16


class UnsafeSubprocess(ChildSandbox):
    """Implements `Sandbox`: one fresh interpreter per program. Limits hold; nothing else does."""

    level = "none (unsafe-subprocess)"
    _in_container = False

    def __init__(self) -> None:
        super().__init__(_ANY_NUMBER)
        _log.warning(_WARNING)

    def _launch(self, start: dict[str, Any], limits: Limits) -> Launch:
        start = {**start, "path": interpreter.packages()}
        return Launch(interpreter.command("alone", start), interpreter.environment())
