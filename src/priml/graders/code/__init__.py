"""Programs judged by their tests. The verdict is made outside of the sandbox in which a program runs."""

from priml.graders.code.verifier import CodeVerifier, Rules, grade, grade_many

__all__ = ["CodeVerifier", "Rules", "grade", "grade_many"]
