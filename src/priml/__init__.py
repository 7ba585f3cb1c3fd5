"""PRIME for language models: online reinforcement learning with implicit process rewards (arXiv 2502.01456).

Importing this package is cheap: no torch. The parts: `priml.maths` (the paper as pure functions), `priml.training` (the
loop), `priml.learners` (policy, PRM), `priml.rollout`, `priml.graders`, `priml.data`, `priml.evaluate`, `priml.report`.
`priml.train` and `priml.open` are the command in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from priml.errors import PrimlError
from priml.types import Group, Message, Problem, Prompt, Trajectory, Verdict

__version__ = "0.1.0"

if TYPE_CHECKING:
    from priml.api import open_run as open
    from priml.api import train

__all__ = [
    "Group",
    "Message",
    "PrimlError",
    "Problem",
    "Prompt",
    "Trajectory",
    "Verdict",
    "__version__",
    "open",
    "train",
]


def __getattr__(name: str) -> Any:
    """`train` and `open` bring pyarrow and more, which nothing else here needs."""
    if name not in ("open", "train"):
        raise AttributeError(f"module 'priml' has no attribute {name!r}")
    from priml import api

    return api.open_run if name == "open" else api.train
