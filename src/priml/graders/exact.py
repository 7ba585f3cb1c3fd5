"""Exact text: the answer letter by letter, apart from white space and, on request, capitals."""

from __future__ import annotations

import unicodedata
from typing import Literal

from priml.graders.extract import boxed_answer
from priml.types import Problem, Verdict

Place = Literal["boxed", "whole"]
"""Where the answer stands: in the last box of the response, or the whole response is the answer."""
_SHOWN = 300


class ExactVerifier:
    """The `Verifier` for answers that are names, words or codes rather than values.

    Unicode forms of one character are the same (NFC), and so is any run of white space; none at the ends counts.
    Reasons for *wrong*: `no answer`, `different text`.
    """

    def __init__(self, *, place: Place = "boxed", ignore_case: bool = False) -> None:
        """See `Place`; `ignore_case`: capitals do not matter."""
        self._place: Place = place
        self._ignore_case = ignore_case

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The verdict on one response."""
        answer = response if self._place == "whole" else boxed_answer(response)
        if answer is None or not answer.strip():
            return Verdict.wrong("no answer")
        shown = answer.strip()[:_SHOWN]
        if self._normal(answer) == self._normal(problem.answer):
            return Verdict.right("equal", shown)
        return Verdict.wrong("different text", shown)

    def _normal(self, text: str) -> str:
        text = " ".join(unicodedata.normalize("NFC", text).split())
        return text.casefold() if self._ignore_case else text
