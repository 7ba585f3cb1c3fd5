"""Settings of `priml data prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from priml.config.backend import Device
from priml.config.base import RunDir, Seed, Settings, Share, Temperature
from priml.config.data import PromptFormat, Source
from priml.config.graders import CodeVerifier, Verify
from priml.config.rollout import Sampler, TransformersSampler
from priml.config.suites import expand_suites

Similarity = Annotated[float, Field(ge=0.7, le=1.0)]
"""Jaccard similarity. Below 0.7 candidates would be missed."""


class Dedup(Settings):
    """Repeated problems, of which the first is kept."""

    jaccard: Similarity = 0.8
    """Similarity of runs of five words from which on a problem is a near copy."""
    templates: Literal["keep", "drop"] = "keep"
    """What becomes of problems that differ from another in their numbers alone."""


class Decontaminate(Settings):
    """Training problems that are in a benchmark."""

    suites: Annotated[tuple[str, ...], AfterValidator(expand_suites)] = ()
    """Benchmarks by name. `paper` is the seven of the paper's table."""
    data_root: Path | None = None
    """Folder with the files of the suites; null: the Hugging Face Hub."""
    data: dict[str, Source] | None = None
    """Named benchmarks of your own."""
    jaccard: Similarity = 0.8
    """Similarity of runs of five words from which on a problem is a near copy."""
    shared: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a problem's runs of eight words that are in benchmarks, from which on it is dropped."""
    templates: Literal["keep", "drop"] = "keep"
    """What becomes of problems that differ from a benchmark problem in their numbers alone."""

    @model_validator(mode="after")
    def _names_a_benchmark(self) -> Self:
        if not self.suites and not self.data:
            raise ValueError("found neither suites nor data, need one of them, e.g. suites: [paper]")
        return self


class Difficulty(Settings):
    """How often a policy solves each problem."""

    model: str
    """The policy: a Hugging Face folder or Hub id."""
    low: Share = 0.1
    """Problems solved less often are dropped."""
    high: Share = 0.9
    """Problems solved more often are dropped."""
    samples: PositiveInt = 8
    """Responses per problem."""
    temperature: Temperature = 1.0
    """Of sampling."""
    max_new_tokens: PositiveInt = 4096
    """Longest response."""
    seed: Seed = 0
    """Seeds the sampling."""
    prompt: PromptFormat = PromptFormat()
    """How problems are rendered; use the same in training."""
    sampler: Sampler = TransformersSampler()
    """What generates the responses."""
    verify: Verify | None = None
    """What judges them; null: mathematics and code, each with its own verifier."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models you have read."""
    backend: Device = Device()
    """Where it runs."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"need low <= high, got low={self.low}, high={self.high}")
        return self


class DataPrepareConfig(Settings):
    """From raw problems to a training set, in stages, each with a file that says what became of every row."""

    run_dir: RunDir
    """Output folder: `train.parquet`, its data card, and a file for each stage."""
    data: Annotated[dict[str, Source], Field(min_length=1)]
    """Named sources of problems. With `on_bad_row: skip` the rows that cannot be read are on record."""
    rules: Literal["careful", "paper"] | None = "careful"
    """Which mathematical problems are open questions whose answers can be checked. `paper` is the authors' filter as it
    is. `careful` drops a problem only for what is there: a figure that is pointed at and not in the text, options of
    which one is the answer, a request for a proof, a sentence as the answer. null: all stay."""
    drawings: Literal["keep", "drop"] = "keep"
    """What becomes of problems with a drawing in Asymptote (`[asy]`). Drop them for models that cannot read it."""
    dedup: Dedup | None = Dedup()
    """Repeated problems; null: they stay."""
    decontaminate: Decontaminate | None = None
    """Problems of benchmarks; null: they stay, and the data card says so."""
    programs: CodeVerifier | None = CodeVerifier()
    """Problems of code: a known solution must pass the tests, and a program that does nothing must not; null: not
    tried."""
    difficulty: Difficulty | None = None
    """Problems that a policy always or never solves; null: not tried."""
