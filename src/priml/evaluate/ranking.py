"""Best-of-n and votes: how much a reward model adds when several responses to a problem are at hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from typing import Any

import numpy as np

from priml.evaluate.scores import Accuracy, accuracy, difference

AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda rewards: sum(rewards) / len(rewards),
    "sum": sum,
    "last": lambda rewards: rewards[-1],
}
"""From the rewards of its steps to the score of a response. The paper's choice is the minimum."""

MAX_SUBSETS = 256
"""A vote of n among N responses is averaged over all subsets where there are no more than this, else over as many."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One response to a problem."""

    outcome: float
    """In [0, 1]."""
    answer: int | None
    """Responses of a problem with the same number give the same answer; None: it gives none, and has no vote."""
    step_rewards: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Accuracies by number of responses n, then by method, and how far each stands above majority voting."""

    curve: dict[int, dict[str, Accuracy]]
    """Methods: `pass@1` (any response), `majority`, `oracle` (the best of the n), `best_of/HOW` (the response with the
    highest score) and `vote/HOW` (each answer weighs the sum of sigmoid(score)), for each HOW in `AGGREGATES`."""
    above_majority: dict[str, Accuracy]
    """With the most responses: the mean difference per problem, with its paired interval."""
    problems: int
    left_out: int
    """Problems with fewer responses than the most common number."""

    def asdict(self) -> dict[str, Any]:
        """The content of `rank.json`."""
        found = asdict(self)
        curve = [{"n": n} | methods for n, methods in found.pop("curve").items()]
        return {"n": max(self.curve), **found, "curve": curve}


def rank(problems: Sequence[Sequence[Candidate]], *, seed: int) -> Ranking:
    """Compare all methods for n = 1, 2, 4, ... up to the most common number of responses per problem.

    Each number is an expectation over subsets of n responses: exact, except that votes may be averaged over
    `MAX_SUBSETS` of them, drawn with `seed`.
    """
    sizes = Counter(len(candidates) for candidates in problems)
    largest = max(sizes, key=lambda size: (sizes[size], size))
    chosen = [candidates for candidates in problems if len(candidates) >= largest]
    curve: dict[int, dict[str, Accuracy]] = {}
    values: dict[str, list[float]] = {}
    for n in sorted({2**i for i in range(largest.bit_length())} | {largest}):
        per_problem = [expectations(c, n, seed=seed + i) for i, c in enumerate(chosen)]
        values = {method: [found[method] for found in per_problem] for method in per_problem[0]}
        curve[n] = {method: accuracy(v, responses=len(chosen) * (largest // n)) for method, v in values.items()}
    majority = values["majority"]
    above = {
        method: difference([a - b for a, b in zip(v, majority, strict=True)])
        for method, v in values.items()
        if method.startswith(("best_of/", "vote/"))
    }
    return Ranking(curve, above, len(chosen), len(problems) - len(chosen))


def expectations(candidates: Sequence[Candidate], n: int, *, seed: int) -> dict[str, float]:
    """Accuracy of each method on one problem with n of its responses, averaged over the subsets."""
    outcomes = [c.outcome for c in candidates]
    answers = [c.answer for c in candidates]
    scores = {how: [score(c.step_rewards) for c in candidates] for how, score in AGGREGATES.items()}
    weights = {how: [_sigmoid(x) for x in values] for how, values in scores.items()} | {"": [1.0] * len(candidates)}
    votes: dict[str, list[float]] = defaultdict(list)
    for subset in subsets(len(candidates), n, seed=seed):
        for how, weight in weights.items():
            drawn = [answers[i] for i in subset], [outcomes[i] for i in subset], [weight[i] for i in subset]
            votes[how].append(vote(*drawn))
    mean = {how: sum(v) / len(v) for how, v in votes.items()}
    return {
        "pass@1": sum(outcomes) / len(outcomes),
        "majority": mean[""],
        "oracle": best_of_n(outcomes, outcomes, n),
        **{f"best_of/{how}": best_of_n(outcomes, values, n) for how, values in scores.items()},
        **{f"vote/{how}": mean[how] for how in scores},
    }


def best_of_n(outcomes: Sequence[float], scores: Sequence[float], n: int) -> float:
    """Expected outcome of the highest-scored of n responses drawn without replacement; exact, equal scores share."""
    total = len(outcomes)
    ranked = sorted(zip(scores, outcomes, strict=True), key=lambda pair: -pair[0])
    expected, better = 0.0, 0
    for _, tied in groupby(ranked, key=lambda pair: pair[0]):
        found = [outcome for _, outcome in tied]
        # The pick is among these when no better one was drawn, and not only worse ones.
        ways = math.comb(total - better, n) - math.comb(total - better - len(found), n)
        expected += ways * sum(found) / len(found)
        better += len(found)
    return expected / math.comb(total, n)


def vote(answers: Sequence[int | None], outcomes: Sequence[float], weights: Sequence[float]) -> float:
    """Mean outcome of the responses behind the answer of the greatest weight; answers that tie share.

    Where nobody gives an answer, any response is as good as another.
    """
    weight_by_answer: dict[int, float] = defaultdict(float)
    outcomes_by_answer: dict[int, list[float]] = defaultdict(list)
    for answer, outcome, weight in zip(answers, outcomes, weights, strict=True):
        if answer is not None:
            weight_by_answer[answer] += weight
            outcomes_by_answer[answer].append(outcome)
    if not weight_by_answer:
        return sum(outcomes) / len(outcomes)
    most = max(weight_by_answer.values())
    winners = [answer for answer, weight in weight_by_answer.items() if weight >= most * (1 - 1e-9)]
    means = [sum(outcomes_by_answer[answer]) / len(outcomes_by_answer[answer]) for answer in winners]
    return sum(means) / len(means)


def subsets(total: int, n: int, *, seed: int) -> Iterator[tuple[int, ...]]:
    """All subsets of n of `total` indices, or `MAX_SUBSETS` random ones when there are more."""
    if math.comb(total, n) <= MAX_SUBSETS:
        yield from combinations(range(total), n)
        return
    rng = np.random.default_rng([seed, total, n])
    for _ in range(MAX_SUBSETS):
        yield tuple(rng.choice(total, n, replace=False).tolist())


def same_answers(answers: Sequence[str | None], is_same: Callable[[str, str], bool]) -> list[int | None]:
    """Number the different answers of a problem. Each is compared with one of every kind found before it."""
    kinds: list[str] = []
    known: dict[str, int] = {}
    for answer in answers:
        if answer is None or answer in known:
            continue
        match = next((i for i, kind in enumerate(kinds) if is_same(answer, kind)), len(kinds))
        if match == len(kinds):
            kinds.append(answer)
        known[answer] = match
    return [None if answer is None else known[answer] for answer in answers]


def _sigmoid(x: float) -> float:
    """Without overflow at either end."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
