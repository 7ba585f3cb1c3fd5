"""How much of a benchmark a model may have seen: what is known of it, and its problems in given training files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LONG_ENOUGH = 40
"""A problem of this many letters and digits counts as seen when it stands anywhere in a training prompt (which may have
a template around it); a shorter one must be all of it."""

KNOWN = {
    "gsm8k-": "All problems of ProcessBench-GSM8K are from the GSM8K test set.",
    "math-": "Of the 955 distinct problems of ProcessBench-MATH, 847 are in the 12,000-problem training split of MATH "
    "that PRM800K introduced, and 108 of its rows are problems of MATH-500: a model trained on either has seen them, "
    "though not these solutions.",
    "olympiadbench-": "The problems of ProcessBench-OlympiadBench come from OlympiadBench.",
    "omnimath-": "The problems of ProcessBench-OmniMATH come from Omni-MATH.",
    "prm_bench": "PRMBench is built on PRM800K: of its 916 distinct problems, 305 are in MATH-500 and 397 in the "
    "12,000-problem training split of MATH.",
}
"""By the beginning of a row's id, or by the kind of file. Counted by exact text, letters and digits only."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Benchmark problems found in training files by their exact text; paraphrases are not looked for."""

    problems: int
    """Distinct problems of the benchmark."""
    seen: dict[str, int]
    """How many of them stand in each training file."""


def known_note(ids: Iterable[str], *, kind: str) -> str | None:
    """What is known of a benchmark, told by the ids of its rows or by its kind."""
    if kind in KNOWN:
        return KNOWN[kind]
    first = next(iter(ids), "")
    return next((note for start, note in KNOWN.items() if first.startswith(start)), None)


def find_overlap(problems: Sequence[str], training: dict[str, Sequence[str]]) -> Overlap:
    """Which problems stand, letter for letter and digit for digit, in the prompts of each training file."""
    distinct = {bare(problem) for problem in problems}
    return Overlap(len(distinct), {name: _count_seen(distinct, prompts) for name, prompts in training.items()})


def bare(text: str) -> str:
    """Letters and digits alone, in lower case: spaces, punctuation and LaTeX's signs differ between copies."""
    return "".join(char for char in text.lower() if char.isalnum())


def _count_seen(problems: set[str], prompts: Sequence[str]) -> int:
    bare_prompts = {bare(prompt) for prompt in prompts}
    # One text to search in; the separator is no letter, so nothing is found across two prompts.
    everything = "\n".join(sorted(bare_prompts))
    return sum(p in bare_prompts or (len(p) >= _LONG_ENOUGH and p in everything) for p in problems)
