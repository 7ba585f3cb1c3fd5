"""From the text of a response and a reference to a verdict: correct, wrong with a reason, or undecided."""

from priml.types import Verdict
from priml.verify.base import Verifier

__all__ = ["Verdict", "Verifier"]
