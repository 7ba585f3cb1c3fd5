"""Settings of `priml eval`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from priml.config.backend import Device
from priml.config.base import RunDir, Seed, Settings, Share, Temperature
from priml.config.data import PromptFormat, Source
from priml.config.environments import Environment
from priml.config.graders import Verify
from priml.config.rollout import EvalSampler, OpenAISampler, TransformersSampler
from priml.config.suites import expand_suites

_LONGEST_NAME = 200


class EvalConfig(Settings):
    """Accuracy on held-out problems and benchmarks, greedy and sampled, with confidence intervals."""

    run_dir: RunDir
    """Output folder: `eval.json`, `table.md` and the responses as parquet."""
    model: str | None = None
    """A Hugging Face folder or Hub id. With `sampler.kind: openai` its tokenizer alone is read, to count what the
    server counts; null: tokens are not counted."""
    data: dict[str, Source] | None = None
    """Named sets of problems of your own."""
    suites: Annotated[tuple[str, ...], AfterValidator(expand_suites)] = ()
    """Benchmarks by name. `paper` is the seven of the paper's table."""
    data_root: Path | None = None
    """Folder with the files of the suites; null: the Hugging Face Hub."""
    protocol: Literal["paper", "authors"] = "paper"
    """`authors` repeats the quirks of the authors' program in the suites: its system message and its lenient rules."""
    prompt: PromptFormat = PromptFormat()
    """How problems are rendered. Suites have the paper's prompt, unless a system message, suffix or text is given."""
    greedy: bool = True
    """One greedy response per problem (pass@1). LiveCodeBench has none."""
    samples: NonNegativeInt | dict[str, NonNegativeInt] = 0
    """Sampled responses per problem, for avg@k, pass@k and maj@k; or by set: {aime24: 16}."""
    temperature: Temperature | None = None
    """Temperature of the sampled responses; null: that of the suite (0.3, LiveCodeBench 0.2), and 1 for your data."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Draw from the most likely tokens alone, as many as have this probability together; null: 0.95 in suites, and 1
    for your data."""
    max_new_tokens: PositiveInt | None = None
    """Longest response; null: that of the suite, and 4096 for your data."""
    seed: Seed = 0
    """Seeds the sampling."""
    sampler: EvalSampler = TransformersSampler()
    """What generates the responses."""
    max_undecided: Share = 0.01
    """The command fails (exit code 1) when more than this share of the responses to a set is undecided: lost on the way
    or not gradable."""
    environment: Environment | None = None
    """What answers the policy between its turns; null: responses of one turn."""
    verify: Verify | None = None
    """What judges responses; null: that of the suite, and mathematics for your data."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""
    backend: Device = Device()
    """Where it runs."""

    @model_validator(mode="after")
    def _sets_are_named_once(self) -> Self:
        names = [*(self.data or {}), *self.suites]
        _check_file_names(names)
        if not names:
            raise ValueError("found neither data nor suites, need one of them")
        if twice := sorted(set(self.data or {}) & set(self.suites)):
            raise ValueError(f"data: found {twice[0]!r}, which is a suite of this run; give your data another name")
        for name in self.samples if isinstance(self.samples, dict) else ():
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
                meant = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"samples: found {name!r}, need some of {', '.join(names)}{meant}")
        return self

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        is_served = isinstance(self.sampler, OpenAISampler)
        if self.model is None and not is_served:
            raise ValueError("model: found none, need a folder or a Hub id; or a server under sampler.kind: openai")
        if self.environment is not None and is_served:
            raise ValueError(
                "environment: found one beside sampler.kind: openai, need a sampler with weights of its own"
            )
        return self

    def samples_in(self, name: str) -> int | None:
        """Sampled responses per problem of this set; None: the settings do not say."""
        return self.samples.get(name) if isinstance(self.samples, dict) else self.samples or None


def _check_file_names(names: Sequence[str]) -> None:
    """Each set has a file of its own, named after it (`RunFolder.responses`)."""
    taken: dict[str, str] = {}
    for name in names:
        file = name.replace("/", "-").casefold()  # some file systems do not tell capitals apart
        if not file or not file.isprintable() or file.startswith(".") or len(file.encode()) > _LONGEST_NAME:
            raise ValueError(
                f"data: found the name {name[:60]!r}, need one that can name a file: 1 to {_LONGEST_NAME} bytes, "
                "printable, and no dot first"
            )
        if taken.get(file, name) != name:
            raise ValueError(f"data: {taken[file]!r} and {name!r} would share a file; give one of them another name")
        taken[file] = name
