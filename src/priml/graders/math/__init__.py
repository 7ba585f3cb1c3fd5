"""Mathematical answers: the last box of a response against a gold answer."""

from priml.graders.math.verifier import MathVerifier, Rules, grade, grade_many

__all__ = ["MathVerifier", "Rules", "grade", "grade_many"]
