"""What an evaluation is made of: named sets of problems, each with its prompt, its decoding and its verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from priml.config import graders as config
from priml.config.data import PromptFormat
from priml.config.eval import EvalConfig
from priml.evaluate.evaluate import EvalSettings, IsSame
from priml.factories.data import LoadedSource, load_prompts, load_source
from priml.factories.graders import Judge, build_verifier
from priml.types import Problem, Prompt, Tokenizer

_STREAM = -1


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One named set of problems, and how it is evaluated."""

    name: str
    loaded: LoadedSource
    form: PromptFormat
    settings: EvalSettings
    verify: config.Verify

    def prompts(self, tokenizer: Tokenizer) -> tuple[Prompt, ...]:
        """The prompts that are not too long."""
        return load_prompts(self.loaded, tokenizer, self.form)

    @property
    def decoding(self) -> dict[str, Any]:
        """How responses are drawn, for the record: scores of other decodings do not compare."""
        found: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens, "greedy": self.settings.greedy}
        if self.settings.samples:
            found |= {name: getattr(self.settings, name) for name in ("samples", "temperature", "top_p")}
        return found


def load_eval_sets(cfg: EvalConfig) -> list[EvalSet]:
    """The sets that the settings name, in their order."""
    settings = EvalSettings(
        greedy=cfg.greedy,
        samples=cfg.samples,
        temperature=cfg.temperature,
        max_new_tokens=cfg.max_new_tokens,
        seed=cfg.seed,
        stream=_STREAM,
        top_p=cfg.top_p,
    )
    return [EvalSet(name, load_source(source), cfg.prompt, settings, cfg.verify) for name, source in cfg.data.items()]


def build_judges(sets: Sequence[EvalSet]) -> list[Judge]:
    """The verifier of each set. Sets with the same settings share one, with its workers and sandboxes."""
    problems: dict[str, list[Problem]] = {}
    for one in sets:
        problems.setdefault(one.verify.model_dump_json(), []).extend(one.loaded.problems)
    made = {
        key: build_verifier(next(one.verify for one in sets if one.verify.model_dump_json() == key), found)
        for key, found in problems.items()
    }
    return [made[one.verify.model_dump_json()] for one in sets]


def answer_comparison(settings: config.Verify, judge: Judge) -> IsSame | None:
    """What tells whether two answers to a problem are the same, for majority votes; None: they cannot be compared."""
    match settings:
        case config.MathVerifier():
            return lambda problem, a, b: judge.is_same(problem, a, b)
        case config.ExactVerifier() | config.ChoiceVerifier():
            return lambda _, a, b: a == b
        case _:
            return None
