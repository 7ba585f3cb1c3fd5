r"""Grade multiple choice: compare the letter in the last box with the right letter.

The letter stands alone or before the text of its option: `C`, `(C)`, `c.`, `\text{(C)}`, `Option C`, `(C) 42`, `C: 42`.
The text of an option without its letter is not a choice, and two letters are not one either.
"""

import re
import unicodedata

from priml.errors import DataError
from priml.graders.extract import bare_answer, boxed_answer
from priml.types import Problem, Verdict

_SHOWN = 100
_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|boldsymbol|bf|rm|left|right|boxed|fbox"
    r"|underline|emph|operatorname)(?![A-Za-z])|\\[!,;: ]|[{}$*~`\"]"
)
_CHOICE = re.compile(
    r"(?:(?i:the )?(?i:correct |right |best |final )?(?i:option|choice|answer)\b(?i:\s+is)?[\s:]*)*"
    r"(?:[(\[]\s*(?P<bracketed>[A-Za-z])\s*[)\]]|(?P<bare>[A-Za-z])(?=$|[.):]|\s*[-–—]\s))(?P<mark>\s*[-–—.):]\s*)?"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(
    r"(?:[,;/&|]|or\b|and\b)?\s*(?:(?i:option|choice)\s+)?[(\[]?[A-Z][)\]]?\s*(?:$|[.,;:/&|)\]]|or\b|and\b)"
)
_ANOTHER_MARKED = re.compile(
    r"(?:[,;/&|]|or\b|and\b)\s*(?:(?i:option|choice)\s+)?[(\[]?[A-Z]\b|[(\[]?[A-Z][)\].:]?\s*$|[(\[]?[A-Z][)\].:]"
)
"""After the mark of the first: `D: A and B` has the text of an option, `A. B.` has not."""
_BRACKETED = re.compile(r"[(\[]\s*[A-Z]\s*[)\]]")


class ChoiceVerifier:
    """The `Verifier` for multiple choice.

    Reasons for *wrong*: `no answer`, `not a choice` (no letter, or several), `different choice`.
    """

    def __init__(self, *, bare_answers: bool = False) -> None:
        """`bare_answers`: without a box, what follows the last "answer is" counts."""
        self._bare_answers = bare_answers

    def grade(self, problem: Problem, response: str) -> Verdict:
        """Return the verdict on one response.

        Raises:
            DataError: the problem's answer is not a letter.
        """
        gold = right_letter(problem)
        answer = boxed_answer(response) or (bare_answer(response) if self._bare_answers else None)
        if not answer:
            return Verdict.wrong("no answer", layer="extraction")
        letter = chosen_letter(answer)
        if letter is None:
            return Verdict.wrong("not a choice", answer[:_SHOWN], layer="extraction")
        if letter == gold:
            return Verdict.right("equal", letter, layer="gold")
        return Verdict.wrong("different choice", letter, layer="gold")


def chosen_letter(answer: str) -> str | None:
    """Return the letter that an answer chooses, in upper case; None if it chooses none or several."""
    found = _CHOICE.fullmatch(unicodedata.normalize("NFKC", _MARKUP.sub("", answer)).strip())
    if found is None or _BRACKETED.search(found["rest"]):
        return None
    if (_ANOTHER_MARKED if found["mark"] else _ANOTHER).match(found["rest"]):
        return None
    return (found["bracketed"] or found["bare"]).upper()


def right_letter(problem: Problem) -> str:
    """Return the letter of the right option.

    Raises:
        DataError: the problem's answer is something else.
    """
    letter = chosen_letter(problem.answer)
    if letter is None:
        raise DataError(
            f"problem {problem.id!r}: its answer is {problem.answer[:_SHOWN]!r}, needed the letter of an option; "
            "mend the row, or choose another verifier for it under `verify`"
        )
    return letter
