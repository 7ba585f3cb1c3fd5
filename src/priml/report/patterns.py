"""Which short runs of tokens are paid most, and whether the responses that hold them are right more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 1_000_000
"""Read from the last steps backwards."""
MIN_RESPONSES = 20
"""Rarer ones say nothing."""
NUM_SHOWN = 12
_BITS = 21  # three token numbers in 63 bits
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Three tokens in a row."""

    text: str
    paid: float
    """Mean process reward of the three together."""
    lift: float
    """Mean outcome of the responses that hold it, less that of all responses to their prompts."""
    responses: int


@dataclass(frozen=True, slots=True)
class Patterns:
    """The best paid ones, and what was read for them."""

    shown: tuple[Pattern, ...]
    responses: int
    steps: tuple[int, int]


def paid_patterns(files: Sequence[Path], tokenizer: Tokenizer | None) -> Patterns | None:
    """The best paid of the last steps; None where nothing was paid. Rows with observations are left out."""
    keys: list[Array] = []
    pay: list[Array] = []
    rows: list[Array] = []
    centred: list[float] = []
    num_tokens = 0
    read: list[int] = []
    for path in reversed(files):
        found = _paid_rows(path)
        if found:
            read.append(int(path.stem))
        for ids, rewards, outcome in found:
            if len(ids) >= 3:
                wide = ids.astype(np.int64)
                keys.append(wide[:-2] << 2 * _BITS | wide[1:-1] << _BITS | wide[2:])
                pay.append(rewards[:-2] + rewards[1:-1] + rewards[2:])
                rows.append(np.full(len(ids) - 2, len(centred)))
                centred.append(outcome)
                num_tokens += len(ids)
        if num_tokens > MAX_TOKENS:
            break
    if not keys or not any(part.any() for part in pay):
        return None
    shown = _best(np.concatenate(keys), np.concatenate(pay), np.concatenate(rows), np.array(centred), tokenizer)
    return Patterns(shown, len(centred), (min(read), max(read)))


def _best(keys: Array, pay: Array, rows: Array, centred: Array, tokenizer: Tokenizer | None) -> tuple[Pattern, ...]:
    different, places = np.unique(keys, return_inverse=True)
    mean = np.bincount(places, weights=pay) / np.bincount(places)
    holds = np.unique(places.astype(np.int64) * len(centred) + rows)  # once per response
    which, row = np.divmod(holds, len(centred))
    counts = np.bincount(which, minlength=len(different))
    lift = np.bincount(which, weights=centred[row], minlength=len(different)) / counts
    often = np.flatnonzero(counts >= MIN_RESPONSES)
    chosen = often[np.argsort(-mean[often], kind="stable")][:NUM_SHOWN]
    return tuple(
        Pattern(_text(int(different[i]), tokenizer), float(mean[i]), float(lift[i]), int(counts[i])) for i in chosen
    )


def _text(key: int, tokenizer: Tokenizer | None) -> str:
    mask = (1 << _BITS) - 1
    ids = [key >> 2 * _BITS, key >> _BITS & mask, key & mask]
    return " ".join(f"#{i}" for i in ids) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)


def _paid_rows(path: Path) -> list[tuple[Array, Array, float]]:
    """Tokens, rewards, and the outcome less the mean of its prompt."""
    names = ["problem_id", "outcome", "response_ids", "process_rewards"]
    try:
        file = pq.ParquetFile(path)
        if not set(names) <= set(file.schema_arrow.names):
            return []
        table = file.read(columns=names)
    except (pa.ArrowException, OSError):
        return []  # the page has a note on this file
    paid = table.filter(table["process_rewards"].is_valid())
    if not paid.num_rows:
        return []
    columns = {name: paid[name].combine_chunks() for name in names}
    outcomes = columns["outcome"].to_numpy(zero_copy_only=False).astype(float)
    codes = columns["problem_id"].dictionary_encode().indices.to_numpy(zero_copy_only=False)
    means = np.bincount(codes, weights=np.nan_to_num(outcomes)) / np.maximum(np.bincount(codes), 1)
    found: list[tuple[Array, Array, float]] = []
    for i, outcome in enumerate(outcomes):
        ids = columns["response_ids"][i].values.to_numpy(zero_copy_only=False)
        rewards = columns["process_rewards"][i].values.to_numpy(zero_copy_only=False).astype(float)
        if len(ids) == len(rewards) and np.isfinite(rewards).all() and np.isfinite(outcome):
            found.append((ids, rewards, float(outcome - means[codes[i]])))
    return found
