"""From the text of a response and a reference to a verdict: correct, wrong with a reason, or undecided."""

from priml.graders.base import Verifier
from priml.types import Verdict

__all__ = ["Verdict", "Verifier"]
