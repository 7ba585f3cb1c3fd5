"""Where the steps of a response end, in tokens: by a pattern in the text, or from a list of given steps."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from priml.data.chat import response_tokens
from priml.errors import ConfigError
from priml.types import Tokenizer

NEWLINE = r"\n\s*"
"""A line, with the blank lines and the indentation behind it."""
NUMBERED = r"(?=\bStep \d+:)"
"""Up to the next `Step k:`; what stands before the first one is a step of its own."""

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MAX_PENDING = 8


def step_ends(token_ids: Sequence[int], tokenizer: Tokenizer, pattern: str = "\n") -> list[int]:
    """Indices of the response tokens that end a step, rising; the last token always does.

    `pattern` is a regular expression for the separator, searched in the response text without special tokens. A token
    ends a step when the text up to and including it completes a match. A match of no width, such as `(?=Step)`, ends
    the step before it. Takes time linear in the response. Raises `ConfigError` for a pattern that is not one.
    """
    try:
        separator = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"the step pattern {pattern!r} is not a regular expression: {error}; escape it or mend it"
        ) from error
    if not token_ids:
        return []
    text, known = text_growth(token_ids, _decoder(tokenizer))
    ends = {bisect_left(known, match.end()) for match in separator.finditer(text) if match.end() > 0}
    return sorted(ends | {len(token_ids) - 1})


def text_growth(token_ids: Sequence[int], decode_ids: Callable[[list[int]], str]) -> tuple[str, list[int]]:
    """The text of a response, and how many of its characters are known after each token.

    Tokens cannot simply be decoded one by one: a character may be spread over several (byte-level BPE), and some
    tokenizers drop the space before the first token they are given (SentencePiece). So each token is decoded behind
    the last one that ended on a whole character.
    """
    decoded: dict[tuple[int, ...], str] = {}  # most pairs of tokens come again in a long response

    def decode(ids: tuple[int, ...]) -> str:
        if ids not in decoded:
            decoded[ids] = decode_ids(list(ids))
        return decoded[ids]

    pieces: list[str] = []
    known: list[int] = []
    length = 0
    context: tuple[int, ...] = ()
    context_text = ""
    pending: tuple[int, ...] = ()
    emitted = 0  # characters of the pending tokens that were handed out before their last character was whole
    for token_id in token_ids:
        pending = (*pending, token_id)
        fresh = decode((*context, *pending))[len(context_text) :]
        # Bytes that never make a character would let the window grow without end. No character has over four bytes.
        is_whole = not fresh.endswith(_UNFINISHED) or len(pending) == _MAX_PENDING
        settled = fresh if is_whole else fresh.rstrip(_UNFINISHED)
        pieces.append(settled[emitted:])
        length += len(pieces[-1])
        known.append(length)
        emitted = len(settled)
        if is_whole:
            context, pending, emitted = pending, (), 0
            context_text = decode(context)
    return "".join(pieces), known


def split_tokens(token_ids: Sequence[int], tokenizer: Tokenizer, pattern: str) -> list[int]:
    """Indices of the tokens that end a step, as `step_ends`, but a last step without any text (an EOS behind the last
    line break) belongs to the one before: it says nothing that could be right or wrong."""
    ends = step_ends(token_ids, tokenizer, pattern)
    if len(ends) > 1:
        last = tokenizer.decode(list(token_ids[ends[-2] + 1 :]), skip_special_tokens=True)
        if not last.strip():
            return [*ends[:-2], ends[-1]]
    return ends


def join_steps(
    steps: Sequence[str], tokenizer: Tokenizer, separator: str, *, end: int
) -> tuple[str, tuple[int, ...], list[int]]:
    """Given steps as one response: its text, its tokens (`end` the last) and the index of each step's last token.

    The text is tokenized as a whole, because a token may reach over the border (`.\\n\\n` is one in many vocabularies);
    it belongs to the step it ends. The separator belongs to the step before it. Steps so short that they share their
    only token share their end.
    """
    text = separator.join(steps)
    token_ids = response_tokens(text, tokenizer, end)
    decode = _decoder(tokenizer)
    decoded, known = text_growth(token_ids, decode)
    borders = list(accumulate(len(step) + len(separator) for step in steps))[:-1]
    if decoded != text:  # some tokenizers normalise what they read, and with it where a step ends
        starts = [text[:border] for border in borders]
        borders = [text_growth(tokenizer.encode(s, add_special_tokens=False), decode)[1][-1] for s in starts]
    last = len(token_ids) - 1
    return text, token_ids, [*(min(bisect_left(known, border), last) for border in borders), last]


def _decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    return partial(tokenizer.decode, skip_special_tokens=True)


def sums_of_steps(values: Sequence[float], ends: Sequence[int]) -> list[float]:
    """The sum of each step. Steps that share a token share its value: the first of them has it, the others 0."""
    totals = [0.0, *accumulate(values)]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [totals[end + 1] - totals[min(start, end + 1)] for start, end in zip(starts, ends, strict=True)]
