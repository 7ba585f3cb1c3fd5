"""Extract the answer from a response: the last box, or an answer without a box.

Only what a reader of the page takes for the answer counts: nothing of the thoughts, nothing after the mark of another
turn, nothing that is not shown.
"""

import re
from collections import deque
from dataclasses import dataclass

_MAX_READ = 500_000
_TAGS = r"(?:seed:)?think(?:ing)?|thoughts?|reasoning"
_THOUGHT = re.compile(rf"<(?:{_TAGS})>|\[THINK\]|<\|begin_of_thought\|>|<\|channel\|>analysis<\|message\|>")
_THOUGHT_ENDS = re.compile(rf"</(?:{_TAGS})>|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>")
_MARK = (
    r"<[|｜][^<>|｜\n,]{2,40}[|｜]>|<\|[a-z_]{3,20}>|</?(?:s|eos|bos|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>"
)
_GREETING = re.compile(rf"(?:\s*(?:{_MARK})(?:\s*(?:assistant|model)\b)?)+")
_TURN = re.compile(_MARK)
_NEXT_TURN = re.compile(r"\n[ \t]*(?:#+ *)?(?:Human|User|Instruction|Question|Problem) ?:")
"""Where a base model that was not stopped goes on to another problem. It counts only after a box."""


def opened_thought(prompt: str) -> str:
    """Return the tag of a thought that the end of a rendered prompt leaves open, as some templates do; else nothing."""
    found = deque(_THOUGHT.finditer(prompt, max(0, len(prompt) - 200)), maxlen=1)
    return found[0][0] if found and not _THOUGHT_ENDS.search(prompt, found[0].end()) else ""


def final_text(response: str) -> str:
    """Return the part of a response that is meant for the reader: after the thoughts, before the next turn.

    It is what follows the last end of a thought. A thought that was opened and not closed was cut: what is in it does
    not count. Marks such as `<|im_end|>`, `</s>` or `[INST]`, written as text, end the response.
    """
    if "<" not in response and "[" not in response:
        return response
    ends = deque(_THOUGHT_ENDS.finditer(response), maxlen=1)
    text = response[ends[0].end() :] if ends else response
    if cut := _THOUGHT.search(text):
        text = text[: cut.start()]
    if greeting := _GREETING.match(text):
        text = text[greeting.end() :]
    return _TURN.split(text, maxsplit=1)[0]


# What the page does not show

_INVISIBLE = re.compile(
    r"<!--.*?(?:-->|\Z)|\\begin\{comment\}.*?(?:\\end\{comment\}|\Z)|\\iffalse\b.*?(?:\\fi\b|\Z)|^[ \t]*%[^\n]*"
    r"|(?<=\})[ \t$.]*(?<!\\)%(?=[^\n]{0,300}\\(?:boxed|f(?:rame)?box))[^\n]*"  # not "50 % of it is \boxed{7}"
    r"|<(\w{1,10})\b[^<>]{0,200}?(?:display:\s*none|visibility:\s*hidden|color:\s*(?:white|transparent|\#fff)|font-size:\s*0|\bhidden\b)"
    r"[^<>]{0,200}>.*?(?:</\1>|\Z)",
    re.DOTALL | re.MULTILINE,
)
_HIDING = re.compile(
    r"\\(?:[hv]?phantom|textcolor\s*\{\s*white\s*\}|scalebox\s*\{\s*0*\.?0*\s*\}|fontsize\s*\{0[a-z]*\}\s*\{[^{}]*\}"
    r"(?:\s*\\selectfont)?|color\s*\{\s*white\s*\})\s*"
)


def _shown(text: str) -> str:
    """Return the text without comments and without what is white, of no size, or a phantom."""
    text = _INVISIBLE.sub("", text)
    parts, at = list[str](), 0
    while found := _HIDING.search(text, at):
        parts.append(text[at : found.start()])
        if "phantom" in found[0] and text[found.end() : found.end() + 1] != "{":
            at = found.end() + 1  # it hides one sign
        else:
            at = _end_of_group(text, found.end())
    return "".join(parts) + text[at:]


def _end_of_group(text: str, start: int) -> int:
    """Return the end of the group in braces at `start`, or of the group around it: a declaration hides the rest."""
    depth = 0
    for token in re.compile(r"\\.|[{}]|\$|\n\n", re.DOTALL).finditer(text, start):
        match token[0]:
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth <= 0:
                    return token.end() if depth == 0 else token.start()
            case "$" | "\n\n" if depth == 0:
                return token.start()
    return len(text)


# Boxes

_BRACES = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])(?:\s*\{)?|\\.|[{}]", re.DOTALL)
_MAX_NEIGHBOURS = 100
_BARE_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox)(?![A-Za-z{])\s*([^\s{}$\\(\[][^\s{}$\\]{0,300}|\\(?!boxed|fbox|framebox)[A-Za-z]++(?:\s*\{[^{}\n]{0,100}\}){0,2})"
)
"""TeX takes a box without braces around the next token; the solutions of MATH have such boxes."""
_BETWEEN_BOXES = re.compile(r"(?:[\s,;$&~]|\\[()\[\],;\\ ]|\\q?quad\b|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|and\b|or\b)*")


def boxed_answer(response: str) -> str | None:
    r"""Return the content of the last complete `\boxed{...}`, `\fbox{...}` or `\framebox{...}`; None without one.

    Of nested boxes the outermost counts. Only `final_text` is read, and of it only the last 500,000 characters.
    """
    answers = boxed_answers(response)
    return answers[-1] if answers else None


def boxed_answers(response: str) -> list[str]:
    r"""Return the last box and its neighbours: `\boxed{8}, \boxed{9}` are two parts of one answer."""
    text = final_text(response)[-_MAX_READ:]
    if not any(command in text for command in (r"\boxed", r"\fbox", r"\framebox")):
        return []
    if text.count("\\") > 1 or "<" in text:
        text = _shown(text)
    boxes = _boxes(text)
    if boxes and (turn := _NEXT_TURN.search(text, boxes[0].end)):
        boxes = [box for box in boxes if box.end <= turn.start()]
    neighbours = boxes[-1:]
    for before in boxes[-2:-_MAX_NEIGHBOURS:-1]:
        if not _BETWEEN_BOXES.fullmatch(text, before.end, neighbours[0].start):
            break
        neighbours.insert(0, before)
    return [box.content for box in neighbours]


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


def _boxes(text: str) -> list[_Box]:
    """Return the complete boxes that are in no other one, in their order."""
    boxes: list[_Box] = []
    open_boxes: list[re.Match[str] | None] = []  # per open brace: its box, None for an ordinary brace
    for token in _BRACES.finditer(text):
        match token[0]:
            case "{":
                open_boxes.append(None)
            case "}":
                box = open_boxes.pop() if open_boxes else None
                if box is not None:
                    while boxes and boxes[-1].start > box.start():
                        boxes.pop()  # it is inside this one
                    boxes.append(_Box(box.start(), token.end(), text[box.end() : token.start()].strip()))
            case escaped if len(escaped) > 2 and escaped[-1] == "{":
                open_boxes.append(token)
            case escaped if len(escaped) > 2:
                bare = _BARE_BOX.match(text, token.start())
                if bare is not None:
                    boxes.append(_Box(bare.start(), bare.end(), bare[1].strip().rstrip(".,;:")))
    return boxes


_TAIL = 1000
"""Characters at the end of a response in which a bare answer is looked for."""
_ANNOUNCED = re.compile(
    r"\b(?:answers?(?:\s+(?:is|are))?\s*[:=]|answers?\s+(?:is|are))\s*|^####", re.IGNORECASE | re.MULTILINE
)
_END_OF_SENTENCE = re.compile(
    r"\.(?=\s|$)|\n|!$|,?\s(?=(?:because|since|so that|which|who)\b)|,\s(?!and\b|or\b)(?=[a-z]{2,}\s)"
)
_INLINE = re.compile(r"\$([^$]+)\$")
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def bare_answer(response: str) -> str | None:
    """Return the answer of a response without a box; None if there is none.

    It is what follows the last "answer is" or "answer:", up to the end of the sentence. Without these words it is the
    last formula between dollar signs, else the last number. Only the last thousand characters are read.
    """
    text = _shown(final_text(response)[-_TAIL:])
    announced = list(_ANNOUNCED.finditer(text))
    if announced:
        answer = _END_OF_SENTENCE.split(text[announced[-1].end() :].strip())[0]
        return answer.strip().strip("*$ ") or None
    found = _INLINE.findall(text) or _NUMBER.findall(text)
    return found[-1].strip() if found else None
