"""Where the steps of a response end, in tokens: by a pattern in the text, or from a list of given steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from priml.data.chat import response_tokens, step_ends, text_growth

NEWLINE = r"\n\s*"
"""A line, with the blank lines and the indentation behind it."""
NUMBERED = r"(?=\bStep \d+:)"
"""Up to the next `Step k:`; what stands before the first one is a step of its own."""


def split_tokens(token_ids: Sequence[int], tokenizer: Any, pattern: str) -> list[int]:
    """Indices of the tokens that end a step, as `step_ends`, but a last step without any text (an EOS behind the last
    line break) belongs to the one before: it says nothing that could be right or wrong."""
    ends = step_ends(token_ids, tokenizer, pattern)
    if len(ends) > 1:
        last = tokenizer.decode(list(token_ids[ends[-2] + 1 :]), skip_special_tokens=True)
        if not last.strip():
            return [*ends[:-2], ends[-1]]
    return ends


def join_steps(steps: Sequence[str], tokenizer: Any, separator: str) -> tuple[str, tuple[int, ...], list[int]]:
    """Given steps as one response: its text, its tokens (EOS at the end) and the index of each step's last token.

    The text is tokenized as a whole, because a token may reach over the border (`.\\n\\n` is one in many vocabularies);
    it belongs to the step it ends. The separator belongs to the step before it. Steps so short that they share their
    only token share their end.
    """
    text = separator.join(steps)
    token_ids = response_tokens(text, tokenizer)
    decoded, known = text_growth(token_ids, tokenizer)
    borders = list(accumulate(len(step) + len(separator) for step in steps))[:-1]
    if decoded != text:  # some tokenizers normalise what they read, and with it where a step ends
        starts = [text[:border] for border in borders]
        borders = [text_growth(tokenizer.encode(s, add_special_tokens=False), tokenizer)[1][-1] for s in starts]
    last = len(token_ids) - 1
    return text, token_ids, [*(min(bisect_left(known, border), last) for border in borders), last]


def sums_of_steps(values: Sequence[float], ends: Sequence[int]) -> list[float]:
    """The sum of each step. Steps that share a token share its value: the first of them has it, the others 0."""
    totals = [0.0, *accumulate(values)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [totals[end + 1] - totals[min(start, end + 1)] for start, end in zip(starts, ends, strict=True)]
