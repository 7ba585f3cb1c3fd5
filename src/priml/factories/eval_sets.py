"""What an evaluation is made of: named sets of problems, each with its prompt, its decoding and its verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from priml.config import graders as config
from priml.config.data import FileSource, HubSource, PromptFormat
from priml.config.eval import EvalConfig
from priml.config.suites import HubData, LocalFile, Suite, read_prompts, read_suite
from priml.data.chat import untokenized_prompt
from priml.errors import DataError
from priml.evaluate.evaluate import EvalSettings, IsSame
from priml.factories.data import LoadedSource, load_prompts, load_source
from priml.factories.graders import Judge, build_verifier
from priml.types import Problem, Prompt, Tokenizer

_STREAM = -1
_ANY_LENGTH = 10**9


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One named set of problems, and how it is evaluated."""

    name: str
    loaded: LoadedSource
    form: PromptFormat
    settings: EvalSettings
    verify: config.Verify
    suite: Suite | None = None

    def prompts(self, tokenizer: Tokenizer | None) -> tuple[Prompt, ...]:
        """The prompts that are not too long; without a tokenizer all, and without tokens."""
        if tokenizer is None:
            return tuple(untokenized_prompt(problem, self.form) for problem in self.loaded.problems)
        return load_prompts(self.loaded, tokenizer, self.form)

    @property
    def decoding(self) -> dict[str, Any]:
        """How responses are drawn, for the record: scores of other decodings do not compare."""
        found: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens, "greedy": self.settings.greedy}
        if self.settings.samples:
            found |= {name: getattr(self.settings, name) for name in ("samples", "temperature", "top_p")}
        return found


def load_eval_sets(cfg: EvalConfig) -> list[EvalSet]:
    """The sets that the settings name, in their order: the user's data, then the suites.

    Raises:
        DataError: a suite is not there, or has other problems than it should.
    """
    own = [
        EvalSet(name, load_source(source), cfg.prompt, _settings(cfg, name, None), cfg.verify or config.MathVerifier())
        for name, source in (cfg.data or {}).items()
    ]
    return own + [_load_suite(cfg, name, read_suite(name)) for name in cfg.suites]


def _settings(cfg: EvalConfig, name: str, suite: Suite | None) -> EvalSettings:
    usual = (
        (0, 1.0, 1.0, 4096) if suite is None else (suite.samples, suite.temperature, suite.top_p, suite.max_new_tokens)
    )
    samples, temperature, top_p, max_new_tokens = usual
    given = cfg.samples_in(name)
    return EvalSettings(
        greedy=cfg.greedy and (suite is None or suite.greedy),
        samples=samples if given is None else given,
        temperature=cfg.temperature or temperature,
        max_new_tokens=cfg.max_new_tokens or max_new_tokens,
        seed=cfg.seed,
        stream=_STREAM,
        top_p=cfg.top_p or top_p,
    )


def _load_suite(cfg: EvalConfig, name: str, suite: Suite) -> EvalSet:
    loaded = load_suite_problems(name, suite, cfg.data_root)
    problems = tuple(
        replace(p, meta={**p.meta, "erratum": suite.errata[p.id]}) if p.id in suite.errata else p
        for p in loaded.problems
    )
    form, verify = _form(cfg, suite), cfg.verify or _verifier(cfg, suite)
    return EvalSet(name, replace(loaded, problems=problems), form, _settings(cfg, name, suite), verify, suite)


def load_suite_problems(name: str, suite: Suite, root: Path | None) -> LoadedSource:
    """The problems of a suite, from below `root`, or from the Hub.

    Raises:
        DataError: they are not there, or are others than they should be.
    """
    place = suite.hub if root is None else suite.local
    if place is None:
        where = f"below data_root: {suite.local.path}" if suite.local else "on the Hub: leave data_root away"
        raise DataError(f"suites: {name}: found no place to take it from, need it {where}; or leave this suite out")
    if isinstance(place, HubData):
        given = place.model_dump(exclude={"count"})
        loaded, origin = load_source(HubSource(kind="hub", **given)), place.dataset
    else:
        path = (root or Path()) / place.path
        loaded, origin = _load_file(name, suite, path, place), str(path)
    if len(loaded.problems) != place.count:
        raise DataError(
            f"suites: {name}: found {len(loaded.problems)} problems in {origin}, need {place.count}: it is another "
            "version of this benchmark; take the one named in docs/evaluation.md, or give it as `data` of your own"
        )
    return loaded


def _load_file(name: str, suite: Suite, path: Path, place: LocalFile) -> LoadedSource:
    if not path.is_file():
        hub = f"; leave data_root away to take {suite.hub.dataset} from the Hub" if suite.hub else ""
        raise DataError(f"suites: {name}: found no file {path}, need it{hub}; or leave this suite out")
    loaded = load_source(FileSource(path=path, columns=place.columns))
    if place.sha256 not in (None, loaded.digest):
        raise DataError(
            f"suites: {name}: {path} has the sha256 {loaded.digest[:12]}, need {str(place.sha256)[:12]}: it is another "
            "version of this benchmark; restore it, or give it as `data` of your own"
        )
    return replace(loaded, problems=loaded.problems[place.skip :])


def _form(cfg: EvalConfig, suite: Suite) -> PromptFormat:
    """The prompt of the settings, with the paper's words where they have none. Nothing is dropped for its length."""
    form = cfg.prompt.model_copy(update={"max_prompt_tokens": _ANY_LENGTH})
    if any(text is not None for text in (form.system, form.suffix, form.text)):
        return form
    texts = read_prompts()
    # The authors' file has a backslash and an n in place of each line break.
    system = texts.system.replace("\n", "\\n") if cfg.protocol == "authors" else texts.system
    return form.model_copy(update={"system": system, "suffix": getattr(texts, suite.ask)})


def _verifier(cfg: EvalConfig, suite: Suite) -> config.Verify:
    if suite.ask == "code":
        return suite.verify or config.CodeVerifier(rules="authors" if cfg.protocol == "authors" else "strict")
    if cfg.protocol == "authors":
        return config.MathVerifier(rules="authors")
    return suite.verify or config.MathVerifier()


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
