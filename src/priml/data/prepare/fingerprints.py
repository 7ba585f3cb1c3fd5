"""What a text has in common with others: its letters and digits, its template, and its runs of words, as hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
SHINGLE, GRAM = 5, 8
"""Words in a shingle, which tells near copies; and in a gram, which tells that one text stands in another."""

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """One text."""

    text: str
    """Its letters and digits, in small letters."""
    template: str
    """Its words with `#` for each number."""
    numbers: tuple[str, ...]
    shingles: Hashes
    """Distinct runs of five words, sorted; of a shorter text the whole."""
    grams: Hashes
    """Distinct runs of eight words, sorted; none in a shorter text."""


def fingerprint(text: str) -> Fingerprint:
    """The fingerprint of a text. It depends on letters, digits and their order alone."""
    words = _WORD.findall(text.lower())
    hashes = np.array([_hash(word) for word in words], dtype=np.uint64)
    joined = " ".join(words)
    return Fingerprint(
        text="".join(words),
        template=_NUMBER.sub("#", joined),
        numbers=tuple(_NUMBER.findall(joined)),
        shingles=_runs(hashes, min(SHINGLE, len(words))),
        grams=_runs(hashes, GRAM),
    )


def jaccard(a: Fingerprint, b: Fingerprint) -> float:
    """Shingles in both, as a share of those in either."""
    shared = np.intersect1d(a.shingles, b.shingles, assume_unique=True).size
    either = a.shingles.size + b.shingles.size - shared
    return shared / either if either else 0.0


def near_pairs(prints: Sequence[Fingerprint], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs `i < j` whose Jaccard similarity is at least `threshold`, with it.

    Candidates come from MinHash (128 permutations in 32 bands); each is checked exactly. A pair of similarity s is
    missed with probability (1 - s^4)^32: 5e-8 at 0.8, 2e-4 at 0.7.
    """
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] # compiled, without stubs

    rows = [i for i, one in enumerate(prints) if one.shingles.size]
    if not rows:
        return []
    offsets = np.concatenate([[0], np.cumsum([prints[i].shingles.size for i in rows])])
    flat = np.concatenate([prints[i].shingles for i in rows])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets.astype(np.uint64), _PERMUTATIONS, 0)
    digests = np.array(matrix.to_rows(), dtype=np.uint32)
    found: list[tuple[int, int, float]] = []
    for first, second in sorted(_candidates(digests)):
        i, j = rows[first], rows[second]
        if (similarity := jaccard(prints[i], prints[j])) >= threshold:
            found.append((i, j, similarity))
    return found


_PERMUTATIONS, _BANDS = 128, 32


def _candidates(digests: NDArray[np.uint32]) -> set[tuple[int, int]]:
    """Pairs of rows that are equal in all of some band."""
    found: set[tuple[int, int]] = set()
    for band in np.split(digests.astype(np.uint64), _BANDS, axis=1):
        keys = _polynomial(band.T)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        for members in np.split(order, starts):
            # Of a crowd each is compared with the first alone: what repeats the first need not be compared further.
            if len(members) > _CROWD:
                found |= {(int(members[0]), int(other)) for other in members[1:]}
            elif len(members) > 1:
                found |= set(combinations(members.tolist(), 2))
    return found


_CROWD = 50


def _runs(hashes: Hashes, length: int) -> Hashes:
    """Hashes of all runs of so many words, distinct and sorted."""
    count = len(hashes) - length + 1
    if length == 0 or count <= 0:
        return np.empty(0, np.uint64)
    return np.unique(_polynomial([hashes[shift : shift + count] for shift in range(length)]))


def _polynomial(parts: Iterable[Hashes]) -> Hashes:
    """One hash of several, modulo 2^64."""
    return reduce(lambda total, part: total * _BASE + part, parts)


@cache
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
