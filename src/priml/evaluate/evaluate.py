"""Held-out evaluation: greedy and sampled responses, any sampler, any verifier."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from priml.data.sources import MAX_SOURCES, source_origin
from priml.errors import RunError
from priml.evaluate.ranking import same_answers, subsets, vote
from priml.evaluate.scores import Accuracy, accuracy, pass_at_k
from priml.graders.base import GroupVerifier
from priml.rollout.base import Sampler, SamplingSpec
from priml.types import Group, Problem, Prompt

IsSame = Callable[[Problem, str, str], bool]
"""Whether two answers to a problem are the same."""


def _erratum(problem: Problem) -> str:
    return "known" if "erratum" in problem.meta else "none"


_BREAKDOWNS: dict[str, Callable[[Problem], str]] = {
    "by_source": source_origin,
    "by_erratum": _erratum,
    **{
        f"by_{name}": partial(lambda problem, name: str(problem.meta.get(name) or ""), name=name)
        for name in ("level", "subject", "difficulty")
    },
}
"""The scores once more for each of these, where the problems have several."""


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How to evaluate."""

    greedy: bool
    samples: int
    temperature: float
    max_new_tokens: int
    seed: int
    stream: int
    """Which random streams the samples draw from; training uses its step number, so take a negative one."""
    top_p: float = 1.0

    @property
    def specs(self) -> dict[str, SamplingSpec]:
        """`greedy` and `sampled`, as far as they are asked for."""
        wanted = {"greedy": (1, 0.0, 1.0)} if self.greedy else {}
        if self.samples:
            wanted["sampled"] = (self.samples, self.temperature, self.top_p)
        return {
            name: SamplingSpec(size, temperature, self.max_new_tokens, self.seed, self.stream, top_p)
            for name, (size, temperature, top_p) in wanted.items()
        }


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of responses."""

    mean: float
    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one set of problems. Undecided responses are left out of every score, and counted."""

    greedy: Accuracy | None
    """pass@1 of the greedy response."""
    sampled: Accuracy | None
    """avg@k: mean outcome of the sampled responses."""
    pass_at: dict[int, Accuracy]
    """pass@k for k = 1, 2, 4, ... up to the number of samples, over the problems with k decided responses."""
    majority_at: dict[int, Accuracy]
    """maj@k: the outcome of the answer that most of k responses give; answers that tie share. For the same k, where
    answers can be compared."""
    undecided: int
    truncated: int
    """Responses cut at the token limit, greedy and sampled together."""
    no_answer: int
    """Responses in which the verifier found no answer."""
    responses: int
    lengths: Lengths | None
    """None: tokens are not known, as with a server whose tokenizer was not given."""
    groups: tuple[Group, ...]
    """Everything that was generated, with verdicts: greedy before sampled."""
    breakdowns: dict[str, dict[str, dict[str, Accuracy]]]
    """By `by_source`, `by_level`, ..., then by the value: `greedy` and `sampled` once more."""

    def asdict(self) -> dict[str, Any]:
        """The scores, fit for JSON."""
        scores: dict[str, Any] = {}
        if self.greedy is not None:
            scores["greedy"] = asdict(self.greedy)
        if self.sampled is not None:
            scores["sampled"] = asdict(self.sampled)
        for name, by_k in (("pass_at", self.pass_at), ("majority_at", self.majority_at)):
            if by_k:
                scores[name] = {str(k): asdict(a) for k, a in by_k.items()}
        for name, values in self.breakdowns.items():
            scores[name] = {
                value: {kind: asdict(score) for kind, score in parts.items()} for value, parts in values.items()
            }
        counts = {name: getattr(self, name) for name in ("undecided", "truncated", "no_answer", "responses")}
        return scores | counts | {"tokens": self.lengths and asdict(self.lengths)}


def evaluate(sampler: Sampler, verify: GroupVerifier, prompts: Sequence[Prompt], settings: EvalSettings) -> Evaluation:
    """Sample, verify and score.

    Raises:
        RunError: not a single response could be judged.
    """
    return score({name: verify(sampler.sample(prompts, spec, verify.submit)) for name, spec in settings.specs.items()})


def score(graded: Mapping[str, Sequence[Group]], is_same: IsSame | None = None) -> Evaluation:
    """The scores of verified groups, by `greedy` and `sampled`. `is_same` is for majority votes.

    Raises:
        RunError: not a single response could be judged.
    """
    greedy, sampled = graded.get("greedy", ()), graded.get("sampled", ())
    groups = (*greedy, *sampled)
    verdicts = [v for g in groups for v in g.verdicts]
    if verdicts and all(v.correct is None for v in verdicts):
        raise RunError(f"no response could be judged; the first reason given: {verdicts[0].reason}")
    lengths = [t.num_trained for g in groups for t in g.trajectories]
    return Evaluation(
        greedy=_mean(greedy),
        sampled=_mean(sampled),
        pass_at=_pass_at(sampled),
        majority_at=_majority_at(sampled, is_same) if is_same else {},
        undecided=sum(v.correct is None for v in verdicts),
        truncated=sum(t.finish_reason == "length" for g in groups for t in g.trajectories),
        no_answer=sum(v.reason == "no answer" for v in verdicts),
        responses=len(verdicts),
        lengths=Lengths(statistics.fmean(lengths), statistics.median(lengths), max(lengths)) if any(lengths) else None,
        groups=groups,
        breakdowns=_break_down(greedy, sampled),
    )


def _break_down(greedy: Sequence[Group], sampled: Sequence[Group]) -> dict[str, dict[str, dict[str, Accuracy]]]:
    found: dict[str, dict[str, dict[str, Accuracy]]] = {}
    for name, label in _BREAKDOWNS.items():
        labels = sorted({label(group.prompt.problem) for group in (*greedy, *sampled)} - {""})
        if 1 < len(labels) <= MAX_SOURCES:
            found[name] = {one: _make_scores(one, label, greedy, sampled) for one in labels}
    return found


def _make_scores(
    wanted: str, label: Callable[[Problem], str], greedy: Sequence[Group], sampled: Sequence[Group]
) -> dict[str, Accuracy]:
    scores: dict[str, Accuracy] = {}
    for name, groups in (("greedy", greedy), ("sampled", sampled)):
        mean = _mean([group for group in groups if label(group.prompt.problem) == wanted])
        if mean is not None:
            scores[name] = mean
    return scores


def _mean(groups: Sequence[Group]) -> Accuracy | None:
    scores = [[v.score for v in g.verdicts if v.score is not None] for g in groups]
    means = [sum(s) / len(s) for s in scores if s]
    return accuracy(means, responses=sum(map(len, scores))) if means else None


def _sizes(groups: Sequence[Group]) -> list[int]:
    """1, 2, 4, ... up to the number of samples."""
    most = max((len(group.trajectories) for group in groups), default=0)
    return [2**i for i in range(most.bit_length())]


def _pass_at(groups: Sequence[Group]) -> dict[int, Accuracy]:
    judged = [[v.correct for v in g.verdicts if v.correct is not None] for g in groups]
    scores: dict[int, Accuracy] = {}
    for k in _sizes(groups):
        chances = [pass_at_k(len(correct), sum(correct), k) for correct in judged if len(correct) >= k]
        if chances:
            # So many times k responses could be drawn without drawing one twice.
            scores[k] = accuracy(chances, responses=sum(len(correct) // k for correct in judged))
    return scores


def _majority_at(groups: Sequence[Group], is_same: IsSame) -> dict[int, Accuracy]:
    votes: dict[int, list[float]] = {k: [] for k in _sizes(groups)}
    responses = 0
    for group in groups:
        decided = [(v.score, v.answer) for v in group.verdicts if v.score is not None]
        outcomes = [outcome for outcome, _ in decided]
        answers = same_answers([answer for _, answer in decided], partial(is_same, group.prompt.problem))
        responses += len(decided)
        for k in votes:
            if len(decided) >= k:
                drawn = list(subsets(len(decided), k, seed=0))
                won = (vote([answers[i] for i in s], [outcomes[i] for i in s], [1.0] * k) for s in drawn)
                votes[k].append(sum(won) / len(drawn))
    return {k: accuracy(values, responses=responses // k) for k, values in votes.items() if values}
