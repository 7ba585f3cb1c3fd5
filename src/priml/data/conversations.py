"""From a conversation to the tokens to learn: those of the chat template, every turn of the assistant trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from priml.batch import Row
from priml.config.data import PromptFormat
from priml.data.chat import apply_template, prompt_messages
from priml.errors import DataError, ModelError
from priml.types import Message, Problem, Tokenizer

_ADVICE = (
    "rows with a problem and a response are learned as they stand; or set prompt.template_kwargs (such as "
    "{enable_thinking: false}), or prompt.template: plain"
)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of the assistant in the text of the template."""

    before: str
    """The prompt: all that the model would see when it begins."""
    said: str
    """What it says, without what ends a turn."""
    closing: str
    """What the template ends the turn with; empty if it writes nothing."""

    @property
    def whole(self) -> str:
        return self.before + self.said + self.closing


def conversation_rows(
    problem: Problem, turns: Sequence[Message], tokenizer: Tokenizer, form: PromptFormat, *, end: int, group: int
) -> list[Row]:
    """The rows of a conversation. `turns`: from the assistant's first on. `end`: the token that ends a turn.

    One row with all turns, if the template leaves earlier turns as they are. Some do not (Qwen3 removes their
    reasoning, Mistral moves the system message): then each turn is a row of its own, behind what the model would see.
    Text is tokenized from each place where the policy begins, as when it samples.

    Raises:
        DataError: the template writes a prompt that it does not keep when the assistant has answered, or leaves out
            what the assistant said.
    """
    conversation = (*prompt_messages(problem, form), *turns)
    at = [i for i, message in enumerate(conversation) if message.role == "assistant"]
    first = len(conversation) - len(turns)
    closing = tokenizer.decode([end], skip_special_tokens=False)
    try:
        found = [_render(conversation[: i + 1], tokenizer, form, closing) for i in at if i >= first]
    except (ModelError, DataError) as error:
        raise DataError(f"problem {problem.id}: {error}; {_ADVICE}") from error
    if all(after.before.startswith(turn.whole) for turn, after in pairwise(found)):
        return [_row(found, tokenizer, end, group)]
    return [_row([turn], tokenizer, end, group) for turn in found]


def _render(conversation: Sequence[Message], tokenizer: Tokenizer, form: PromptFormat, closing: str) -> _Turn:
    """The last turn of a conversation."""
    before = apply_template(conversation[:-1], tokenizer, form)
    whole = apply_template(conversation, tokenizer, form, asks=False)
    if not whole.startswith(before):
        raise DataError("the chat template does not keep its prompt when the assistant has answered")
    rest = whole[len(before) :]
    said, ends, _ = rest.rpartition(closing)
    if not ends:
        said = rest.rstrip()
    if "".join(conversation[-1].content.split()) not in "".join(said.split()):
        raise DataError("the chat template leaves out what the assistant said")
    return _Turn(before, said, ends)


def _row(turns: Sequence[_Turn], tokenizer: Tokenizer, end: int, group: int) -> Row:
    def tokens(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    prompt = turns[0].before
    ids: list[int] = []
    is_trained: list[bool] = []
    for number, turn in enumerate(turns):
        read = tokens(turn.before.removeprefix(turns[number - 1].whole)) if number else []
        learned = [*tokens(turn.said), end]
        ids += [*read, *learned]
        is_trained += [False] * len(read) + [True] * len(learned)
    mask = None if all(is_trained) else np.array(is_trained)
    return Row(tokens(prompt), np.array(ids, np.int32), 0.0, group, (), is_trained=mask)
