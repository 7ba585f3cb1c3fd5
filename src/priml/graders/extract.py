"""Extract the answer from a response: the last box, or an answer without a box."""

import re

_MAX_READ = 500_000
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def boxed_answer(response: str) -> str | None:
    r"""Return the content of the last complete `\boxed{...}` or `\fbox{...}`; None without one.

    Of nested boxes the outermost counts. A box in the thinking part does not count: only the text after the last
    `</think>` and before an unclosed `<think>` is read, and of it only the last 500,000 characters.
    """
    text = _after_thinking(response)[-_MAX_READ:]
    first = min((at for at in (text.find(r"\boxed"), text.find(r"\fbox")) if at >= 0), default=-1)
    if first < 0:
        return None
    last: tuple[int, int] | None = None
    open_boxes: list[int | None] = []  # per open brace: where its box's content starts, None for an ordinary brace
    for token in _BRACES.finditer(text, first):
        match token[0]:
            case "{":
                open_boxes.append(None)
            case "}":
                start = open_boxes.pop() if open_boxes else None
                if start is not None:
                    last = (start, token.start())
            case escaped if len(escaped) > 2:
                open_boxes.append(token.end())
    return None if last is None else text[slice(*last)].strip()


_TAIL = 1000
"""Characters at the end of a response in which a bare answer is looked for."""
_ANNOUNCED = re.compile(r"\b(?:answers?(?:\s+(?:is|are))?\s*[:=]|answers?\s+(?:is|are))\s*", re.IGNORECASE)
_END_OF_SENTENCE = re.compile(r"\.(?=\s|$)|\n")
_INLINE = re.compile(r"\$([^$]+)\$")
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def bare_answer(response: str) -> str | None:
    """Return the answer of a response without a box; None if there is none.

    It is what follows the last "answer is" or "answer:", up to the end of the sentence. Without these words it is the
    last formula between dollar signs, else the last number. Only the last thousand characters are read.
    """
    text = _after_thinking(response)[-_TAIL:]
    announced = list(_ANNOUNCED.finditer(text))
    if announced:
        answer = _END_OF_SENTENCE.split(text[announced[-1].end() :].strip())[0]
        return answer.strip().strip("*$ ") or None
    found = _INLINE.findall(text) or _NUMBER.findall(text)
    return found[-1].strip() if found else None


def _after_thinking(response: str) -> str:
    return response.rpartition("</think>")[2].partition("<think>")[0]
