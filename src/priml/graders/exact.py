"""Grade by exact text; only white space and, on request, case do not matter."""

import unicodedata
from typing import Literal

from priml.graders.extract import boxed_answer
from priml.types import Problem, Verdict

_SHOWN = 300


class ExactVerifier:
    """The `Verifier` for answers that are names, words or codes.

    Unicode is normalized (NFC), a run of white space is one space, and white space at the ends does not count.
    Reasons for *wrong*: `no answer`, `different text`.
    """

    def __init__(self, *, place: Literal["boxed", "whole"] = "boxed", ignore_case: bool = False) -> None:
        """`place`: the answer is in the last box of the response, or it is the whole response."""
        self._place = place
        self._ignore_case = ignore_case

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the verdict on one response."""
        answer = response if self._place == "whole" else boxed_answer(response)
        if answer is None or not answer.strip():
            return Verdict.wrong("no answer", layer="extraction")
        shown = answer.strip()[:_SHOWN]
        if self._normal(answer) == self._normal(problem.answer):
            return Verdict.right("equal", shown, layer="gold")
        return Verdict.wrong("different text", shown, layer="gold")

    def _normal(self, text: str) -> str:
        text = " ".join(unicodedata.normalize("NFC", text).split())
        return text.casefold() if self._ignore_case else text
