"""Rows that repeat an earlier row, and rows that are in a benchmark.

Two problems are compared by three rules: the same letters and digits; the Jaccard similarity of their runs of five
words; the share of one's runs of eight words that a benchmark has, too. Where the numbers differ, they have one
template, which is a class of its own. A single shared run of eight words is mostly boilerplate ("Express your answer as
a common fraction"), so it is counted and drops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from priml.data.prepare.decisions import KEPT, Decision, dropped
from priml.data.prepare.fingerprints import Fingerprint, fingerprint, near_pairs
from priml.data.prepare.rules import question
from priml.errors import DataError
from priml.types import Problem

_TEMPLATE = "same template, other numbers"
_SIGNS = "same letters and digits, other signs and answer"
_WHOLE_BENCHMARK = 0.5


def find_duplicates(
    problems: Sequence[Problem], prints: Sequence[Fingerprint], *, threshold: float, drop_templates: bool
) -> list[Decision]:
    """Of rows that repeat each other the first is kept."""
    near: dict[int, list[tuple[int, float]]] = {}
    for i, j, similarity in near_pairs(prints, threshold):
        near.setdefault(j, []).append((i, similarity))
    decisions: list[Decision] = []
    texts: dict[str, int] = {}
    templates: dict[str, int] = {}
    for j, (problem, one) in enumerate(zip(problems, prints, strict=True)):
        earlier = [(i, similarity) for i, similarity in near.get(j, []) if decisions[i].is_kept]
        copies = [(i, s) for i, s in earlier if prints[i].numbers == one.numbers and prints[i].text != one.text]
        if one.text in texts:
            decisions.append(_same_text(problem, problems[texts[one.text]]))
        elif copies:
            first, similarity = copies[0]
            decisions.append(dropped("near copy", problems[first].id, similarity))
        elif earlier or one.template in templates:
            first, value = earlier[0] if earlier else (templates[one.template], None)
            decisions.append(Decision(not drop_templates, _TEMPLATE, problems[first].id, value))
        else:
            decisions.append(KEPT)
        if one.text and decisions[-1].is_kept:
            texts.setdefault(one.text, j)
            templates.setdefault(one.template, j)
    return decisions


def _same_text(problem: Problem, first: Problem) -> Decision:
    if problem.answer == first.answer:
        return dropped("same text", first.id)
    if "".join(question(problem).split()) == "".join(question(first).split()):
        return dropped("same text, another answer", first.id)
    return Decision(True, _SIGNS, first.id)  # 2 + 3 and 2 - 3


@dataclass(frozen=True, slots=True)
class Benchmarks:
    """The problems that a model will be measured on."""

    ids: tuple[str, ...]
    """`NAME/ID`."""
    names: tuple[str, ...]
    prints: tuple[Fingerprint, ...]

    @classmethod
    def of(cls, sets: Mapping[str, Sequence[Problem]]) -> Benchmarks:
        """All problems of named sets."""
        pairs = [(name, problem) for name, problems in sets.items() for problem in problems]
        return cls(
            ids=tuple(f"{name}/{problem.id}" for name, problem in pairs),
            names=tuple(name for name, _ in pairs),
            prints=tuple(fingerprint(question(problem)) for _, problem in pairs),
        )

    def check_not_among(self, texts: Mapping[str, frozenset[str]]) -> None:
        """Refuse sources, given by the texts of their fingerprints, of which one holds half of a benchmark.

        Raises:
            DataError: it does.
        """
        for source, found in texts.items():
            for name in dict.fromkeys(self.names):
                theirs = {one.text for one, its in zip(self.prints, self.names, strict=True) if its == name}
                if len(theirs & found) >= _WHOLE_BENCHMARK * len(theirs):
                    raise DataError(
                        f"data.{source}: found {len(theirs & found)} of the {len(theirs)} problems of the benchmark "
                        f"{name} in it, need training problems; take the file away, or leave {name} out of "
                        "decontaminate"
                    )


def find_contaminated(
    prints: Sequence[Fingerprint], benchmarks: Benchmarks, *, threshold: float, share: float, drop_templates: bool
) -> tuple[list[Decision], int]:
    """The decision of each row, and how many rows share any run of eight words with a benchmark."""
    others, ids, count = benchmarks.prints, benchmarks.ids, len(prints)
    near: dict[int, tuple[int, float]] = {}
    for i, j, similarity in near_pairs([*prints, *others], threshold):
        if i < count <= j and similarity > near.get(i, (0, 0.0))[1]:
            near[i] = (j - count, similarity)
    texts = {one.text: i for i, one in enumerate(others) if one.text}
    templates = {one.template: i for i, one in enumerate(others) if one.template}
    shares, owners = _shared_grams(prints, others)
    decisions: list[Decision] = []
    for i, one in enumerate(prints):
        other, similarity = near.get(i, (-1, 0.0))
        has_other_numbers = other >= 0 and others[other].numbers != one.numbers
        if one.text in texts:
            decisions.append(dropped("same text as a benchmark problem", ids[texts[one.text]]))
        elif other >= 0 and not has_other_numbers:
            decisions.append(dropped("near copy of a benchmark problem", ids[other], similarity))
        elif has_other_numbers or one.template in templates:
            other = other if has_other_numbers else templates[one.template]
            decisions.append(
                Decision(not drop_templates, f"{_TEMPLATE} than a benchmark problem", ids[other], similarity)
            )
        elif shares[i] >= share:
            decisions.append(dropped("half of its runs of words are in benchmarks", ids[owners[i]], float(shares[i])))
        else:
            decisions.append(KEPT)
    return decisions, int((shares > 0).sum())


def _shared_grams(
    prints: Sequence[Fingerprint], others: Sequence[Fingerprint]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each text the share of its grams that the others have, and which of them has the first of these."""
    grams, first = np.unique(_flat(others), return_index=True)
    theirs = np.repeat(np.arange(len(others)), [one.grams.size for one in others])
    sizes = np.array([one.grams.size for one in prints])
    mine = _flat(prints)
    shares, owners = np.zeros(len(prints)), np.zeros(len(prints), np.int64)
    if not grams.size or not mine.size:
        return shares, owners
    at = np.minimum(np.searchsorted(grams, mine), len(grams) - 1)
    rows = np.repeat(np.arange(len(prints)), sizes)
    is_shared = grams[at] == mine
    shares = np.bincount(rows[is_shared], minlength=len(prints)) / np.maximum(1, sizes)
    owners[rows[is_shared][::-1]] = theirs[first[at[is_shared]]][::-1]
    return shares, owners


def _flat(prints: Sequence[Fingerprint]) -> NDArray[np.uint64]:
    return np.concatenate([np.empty(0, np.uint64), *(one.grams for one in prints)])
