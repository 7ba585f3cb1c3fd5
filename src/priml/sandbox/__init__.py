"""Runs strangers' code where it can do no harm, or refuses to.

`open_sandbox` picks the strongest isolation that proves itself on this machine; `run` uses one shared sandbox of that
kind. What a program sees and how to converse with it: `priml.sandbox.base`.
"""

from priml.sandbox.base import (
    Limits,
    ProgramEnded,
    Sandbox,
    SandboxLost,
    SandboxResult,
    SandboxUnavailable,
    Session,
)
from priml.sandbox.choose import open_sandbox, run

__all__ = [
    "Limits",
    "ProgramEnded",
    "Sandbox",
    "SandboxLost",
    "SandboxResult",
    "SandboxUnavailable",
    "Session",
    "open_sandbox",
    "run",
]
