"""Rows to learn responses from, in the forms that other programs write.

| form | columns |
|---|---|
| ours | `problem`, `question` or `prompt`, with `response` or `solution` |
| TRL | `messages`; or `prompt` and `completion`, both as text or both as messages |
| LLaMA-Factory alpaca | `instruction` and `output`; `input`, `history` if they are there |
| sharegpt, Eurus-2-SFT-Data | `conversations` |

`system` (or `system_prompt`) is a system message for all of them. Messages are `{role, content}` or `{from, value}`.
None needs an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from priml.data.rows import BadRowError, checked_text, read_cell, shown
from priml.data.sources import read_label, to_problem
from priml.types import Message, Problem

TURNS = "turns"
"""Where the rest of a conversation is in `Problem.meta`: messages, from the assistant's first on."""

Row = Mapping[str, Any]

_FORMS = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"))
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_SOURCES = ("source", "data_source", "dataset")
_QUESTIONS, _RESPONSES = ("problem", "question", "prompt"), ("response", "solution")


def to_demonstration(row: Row, columns: Mapping[str, str], *, name: str, number: int) -> Problem:
    """The problem in a row with what is to be learned: `response` or `solution` in `meta`, or `TURNS`.

    Raises:
        BadRowError: the row has none of the forms, or what it has is not as it should be.
    """
    form = None if columns or _is_ours(row) else _form(row)
    if form is None:
        return _with_system(to_problem(row, columns, name=name, number=number, needs_answer=False), row)
    if row.get("tools"):
        raise BadRowError("tools: descriptions of tools are not put into prompts; leave the column out, or the row")
    asked, turns = _conversation(row, form)
    if not turns or turns[-1].role != "assistant":
        ends = (turns or asked)[-1].role
        raise BadRowError(f"{form[-1]} ends with a message of role {ends!r}, needed the assistant's last")
    if not asked or asked[-1].role != "user":
        raise BadRowError(f"{form[0]}: the assistant speaks first, needed a user message before")
    filled = {column: value for column, value in row.items() if value is not None}
    sources = [read_label(filled, column) for column in _SOURCES if column in filled]
    return Problem(
        id=read_label(filled, "id") or f"{name}:{number}",
        prompt=tuple(asked),
        answer="",
        source=sources[0] if sources else name,
        meta={TURNS: tuple(turns)},
    )


def _is_ours(row: Row) -> bool:
    return any(row.get(name) for name in _QUESTIONS) and any(row.get(name) for name in _RESPONSES)


def _form(row: Row) -> tuple[str, ...] | None:
    """The columns of the first form that the row has."""
    found = next((form for form in _FORMS if all(row.get(name) is not None for name in form)), None)
    if found is None and not any(read_cell(row, name) is not None for name in ("answer", "reward_model.ground_truth")):
        filled = ", ".join(name for name, value in row.items() if value is not None) or "no column"
        raise BadRowError(
            f"nothing to learn from: found values in {filled}, needed messages; conversations; prompt and completion; "
            "instruction and output; or problem and response"
        )
    return found


def _conversation(row: Row, form: tuple[str, ...]) -> tuple[list[Message], list[Message]]:
    """The prompt, and the turns to learn with what stands between them."""
    if form == ("prompt", "completion"):
        asked, turns = _side(row, "prompt", "user"), _side(row, "completion", "assistant")
    else:
        messages = _alpaca(row) if form[0] == "instruction" else _messages(row[form[0]], form[0])
        first = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
        asked, turns = messages[:first], messages[first:]
    is_told = bool(asked) and asked[0].role == "system"
    return ([] if is_told else [*_system(row)]) + asked, turns


def _side(row: Row, column: str, role: str) -> list[Message]:
    value = row[column]
    return [Message(role, checked_text(value, column))] if isinstance(value, str) else _messages(value, column)


def _alpaca(row: Row) -> list[Message]:
    past = row.get("history") or []
    if not isinstance(past, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in past):
        raise BadRowError(f"history is {shown(past)}, needed a list of pairs of question and response")
    said = [
        Message(role, _text(text, f"history[{i}]"))
        for i, pair in enumerate(past)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    question = _text(row["instruction"], "instruction")
    if row.get("input"):
        question += "\n" + _text(row["input"], "input")
    return [*said, Message("user", question), Message("assistant", _text(row["output"], "output"))]


def _messages(value: object, column: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRowError(f"{column} is {shown(value)}, needed a list of messages")
    return [_message(turn, f"{column}[{i}]") for i, turn in enumerate(value)]


def _message(turn: object, column: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRowError(f"{column} is {shown(turn)}, needed {{role, content}} or {{from, value}}")
    role_key, text_key = ("from", "value") if turn.get("from") is not None else ("role", "content")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRowError(f"{column}.{role_key} is {shown(role)}, needed one of {', '.join(_ROLES)}")
    if turn.get("tool_calls"):
        raise BadRowError(f"{column}.tool_calls: calls are not rendered; write them into the content as the model does")
    if turn.get("weight") == 0 or turn.get("train") is False:
        raise BadRowError(f"{column} is marked as not to be learned; every turn of the assistant is: leave the row out")
    text = turn.get(text_key)
    # An empty system message says "no system prompt"; a program may have printed nothing.
    may_be_empty = _ROLES[role] in ("system", "tool")
    if not isinstance(text, str):
        raise BadRowError(f"{column}.{text_key} is {shown(text)}, needed text")
    return Message(_ROLES[role], checked_text(text, f"{column}.{text_key}", may_be_empty=may_be_empty))


def _system(row: Row) -> Sequence[Message]:
    column = next((name for name in ("system", "system_prompt") if row.get(name)), None)
    return () if column is None else (Message("system", _text(row[column], column)),)


def _with_system(problem: Problem, row: Row) -> Problem:
    system = _system(row)
    if not system or not isinstance(problem.prompt, str):
        return problem
    return replace(problem, prompt=(*system, Message("user", problem.prompt)))


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{column} is {shown(value)}, needed text")
    return checked_text(value, column)
