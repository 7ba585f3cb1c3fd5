"""PRIME for language models: online reinforcement learning with implicit process rewards (arXiv 2502.01456).

Importing this package is cheap: no torch. The parts: `priml.maths` (the paper as pure functions), `priml.training` (the
loop), `priml.learners` (policy, PRM), `priml.rollout`, `priml.graders`, `priml.data`, `priml.evaluate`, `priml.report`.
"""

from priml.errors import PrimlError
from priml.types import Group, Message, Problem, Prompt, Trajectory, Verdict

__version__ = "0.1.0"

__all__ = ["Group", "Message", "PrimlError", "Problem", "Prompt", "Trajectory", "Verdict", "__version__"]
