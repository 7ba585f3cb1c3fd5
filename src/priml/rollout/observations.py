"""How an observation is put into the tokens of a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from priml.config.data import PromptFormat
from priml.data.chat import apply_template, uses_template
from priml.errors import ModelError
from priml.types import Message, Segment, Tokenizer

_TURN, _OBSERVATION = "PrimlTurnHere", "PrimlObservationHere"
_MOST_CHARACTERS = 64
"""Of a token on average, at most."""


@dataclass(frozen=True, slots=True)
class ObservationFormat:
    """The tokens around an observation: from the end of the policy's turn to where its next turn begins.

    Tokens are only ever appended. What the policy sampled is never rendered and tokenized again, so it is trained on
    exactly the tokens that it sampled. A template that leaves the reasoning of earlier turns out does so only when it
    renders a conversation anew; here the policy goes on seeing what it wrote.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    limit: int
    """Tokens of an observation. A longer one is cut in the middle."""

    def segment(self, observation: str, tokenizer: Tokenizer) -> Segment:
        """The observation as a segment."""
        ids = _as_text(_without_middle(observation, _MOST_CHARACTERS * self.limit), tokenizer)
        if len(ids) > self.limit:
            kept = self.limit // 2
            ids = ids[: self.limit - kept] + ids[len(ids) - kept :]
        tokens = np.array([*self.before, *ids, *self.after], dtype=np.int32)
        return Segment(tokens, np.zeros(0, np.float32), weight_version=None)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return len(self.before) + self.limit + len(self.after)


def _without_middle(text: str, most: int) -> str:
    """Millions of characters are not tokenized for the few tokens that are kept of them."""
    return text if len(text) <= 2 * most else text[:most] + text[-most:]


def _as_text(observation: str, tokenizer: Tokenizer) -> list[int]:
    """Its tokens. The name of a special token in it is only text: a tool's output cannot end a turn or begin another's.

    Not `split_special_tokens`, which changes the tokenizer that other threads are using.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = "|".join(re.escape(name) for name in special if len(name) > 1)
    cuts = [match.start() + 1 for match in re.finditer(f"(?={names})", observation)] if names else []
    pieces = (observation[start:end] for start, end in pairwise([0, *cuts, len(observation)]))
    return [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]


def observation_format(
    tokenizer: Tokenizer, eos_ids: Sequence[int], form: PromptFormat, *, role: Literal["user", "tool"], limit: int
) -> ObservationFormat:
    """How the tokenizer's chat template puts a message of `role` behind a turn; without chat the observation stands
    alone.

    Raises:
        ModelError: the template refuses such a conversation, or changes the order of its messages.
    """
    if not uses_template(tokenizer, form):
        return ObservationFormat((), (), limit)
    conversation = (Message("user", "?"), Message("assistant", _TURN), Message(role, _OBSERVATION))
    try:
        text = apply_template(conversation, tokenizer, form)
    except ModelError as error:
        raise ModelError(
            f"a message of role {role!r} behind the assistant's: {error}; set environment.role: "
            f"{'user' if role == 'tool' else 'tool'}, or data.prompt.template: plain"
        ) from error
    _, found_turn, rest = text.partition(_TURN)
    before, found_observation, after = rest.partition(_OBSERVATION)
    if not found_turn or not found_observation or _TURN in rest:
        raise ModelError(
            f"the chat template does not render an assistant's turn and then a message of role {role!r} as they stand; "
            "set data.prompt.template: plain, or give the model another template"
        )
    ends = (tokenizer.decode([token], skip_special_tokens=False) for token in eos_ids)
    # The sampled turn has ended with its EOS already.
    before = next((before.removeprefix(end) for end in ends if end and before.startswith(end)), before)

    def ids(part: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(part, add_special_tokens=False))

    return ObservationFormat(ids(before), ids(after), limit)
