"""Held-out evaluation: greedy and sampled responses, any sampler, any verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from priml.data.sources import source_origin, sources_in
from priml.errors import RunError
from priml.evaluate.scores import Accuracy, accuracy, pass_at_k
from priml.graders.base import GroupVerifier
from priml.rollout.base import Sampler, SamplingSpec
from priml.types import Group, Prompt


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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one set of problems. Undecided responses are left out of every score, and counted."""

    greedy: Accuracy | None
    """pass@1 of the greedy response."""
    sampled: Accuracy | None
    """avg@k: mean outcome of the sampled responses."""
    pass_at: dict[int, Accuracy]
    """pass@k for k = 1, 2, 4, ... up to the number of samples, over the problems with k decided responses."""
    undecided: int
    truncated: int
    """Responses cut at the token limit, greedy and sampled together."""
    responses: int
    groups: tuple[Group, ...]
    """Everything that was generated, with verdicts."""
    by_source: dict[str, dict[str, Accuracy]]
    """`greedy` and `sampled` once more for each source, where the problems have several."""

    def asdict(self) -> dict[str, Any]:
        """The scores, fit for JSON."""
        scores: dict[str, Any] = {}
        if self.greedy is not None:
            scores["greedy"] = asdict(self.greedy)
        if self.sampled is not None:
            scores["sampled"] = asdict(self.sampled)
        if self.pass_at:
            scores["pass_at"] = {str(k): asdict(a) for k, a in self.pass_at.items()}
        if self.by_source:
            scores["by_source"] = {
                source: {name: asdict(score) for name, score in parts.items()}
                for source, parts in self.by_source.items()
            }
        return scores | {"undecided": self.undecided, "truncated": self.truncated, "responses": self.responses}


def evaluate(sampler: Sampler, verify: GroupVerifier, prompts: Sequence[Prompt], settings: EvalSettings) -> Evaluation:
    """Sample, verify and score.

    Raises:
        RunError: not a single response could be judged.
    """

    def respond(size: int, temperature: float) -> list[Group]:
        spec = SamplingSpec(
            group_size=size,
            temperature=temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            step=settings.stream,
        )
        return verify(sampler.sample(prompts, spec, verify.submit))

    greedy = respond(1, 0.0) if settings.greedy else []
    sampled = respond(settings.samples, settings.temperature) if settings.samples else []
    groups = (*greedy, *sampled)
    verdicts = [v for g in groups for v in g.verdicts]
    if verdicts and all(v.correct is None for v in verdicts):
        raise RunError(f"no response could be judged; the first reason given: {verdicts[0].reason}")
    return Evaluation(
        greedy=_mean(greedy),
        sampled=_mean(sampled),
        pass_at=_pass_at(sampled, settings.samples),
        undecided=sum(v.correct is None for v in verdicts),
        truncated=sum(c.finish_reason == "length" for g in groups for c in g.trajectories),
        responses=len(verdicts),
        groups=groups,
        by_source={source: _make_scores(source, greedy, sampled) for source in sources_in(p.problem for p in prompts)},
    )


def _make_scores(source: str, greedy: Sequence[Group], sampled: Sequence[Group]) -> dict[str, Accuracy]:
    scores: dict[str, Accuracy] = {}
    for name, groups in (("greedy", greedy), ("sampled", sampled)):
        mean = _mean([group for group in groups if source_origin(group.prompt.problem) == source])
        if mean is not None:
            scores[name] = mean
    return scores


def _mean(groups: Sequence[Group]) -> Accuracy | None:
    scores = [[v.score for v in g.verdicts if v.score is not None] for g in groups]
    means = [sum(s) / len(s) for s in scores if s]
    return accuracy(means, responses=sum(map(len, scores))) if means else None


def _pass_at(groups: Sequence[Group], samples: int) -> dict[int, Accuracy]:
    judged = [[v.correct for v in g.verdicts if v.correct is not None] for g in groups]
    scores: dict[int, Accuracy] = {}
    for k in (2**i for i in range(samples.bit_length())):
        chances = [pass_at_k(len(correct), sum(correct), k) for correct in judged if len(correct) >= k]
        if chances:
            # So many times k responses could be drawn without drawing one twice.
            scores[k] = accuracy(chances, responses=sum(len(correct) // k for correct in judged))
    return scores
