"""Benchmarks as small files in `priml/suites`: where the problems are, and how their scores were published."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, cast

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt

from priml.config.base import Settings, Temperature
from priml.config.graders import CodeVerifier, MathVerifier

PAPER = ("aime24", "amc", "math500", "minerva", "olympiadbench", "leetcode", "livecodebench_v2")
"""The seven of the paper's main table; as a suite they are called `paper`."""


class _Place(Settings):
    """Where the problems of a suite are, and how many there must be."""

    count: PositiveInt
    columns: dict[str, str] | None = None


class LocalFile(_Place):
    """A file below `data_root`."""

    path: Path
    skip: NonNegativeInt = 0
    """Leave out the first rows."""
    sha256: str | None = None
    """Of the file. None: nobody has seen it yet, and the count alone is checked."""


class HubData(_Place):
    """A data set on the Hub."""

    dataset: str
    split: str
    name: str | None = None
    revision: str | None = None
    """The commit. None: it is not known which one others used."""


class Suite(Settings):
    """One benchmark."""

    title: str
    ask: Literal["math", "code"]
    """Which request stands behind the question."""
    local: LocalFile | None = None
    hub: HubData | None = None
    """At least one of the two."""
    greedy: bool = True
    samples: NonNegativeInt = 0
    """Sampled responses per problem, unless the settings say how many."""
    temperature: Temperature = 0.3
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    max_new_tokens: PositiveInt = 4096
    verify: Annotated[MathVerifier | CodeVerifier, Field(discriminator="kind")] | None = None
    """None: the usual one for what is asked."""
    licence: str
    notes: str = ""
    errata: dict[str, str] = Field(default_factory=dict)
    """Ids of problems with a known error, and the error."""
    published: dict[str, float] = Field(default_factory=dict)
    """Accuracy of models in per cent, from the paper's table."""


class Prompts(Settings):
    """What all suites share."""

    system: str
    math: str
    code: str


def suite_names() -> list[str]:
    """All suites, sorted."""
    names = (Path(entry.name) for entry in files("priml").joinpath("suites").iterdir())
    return sorted(path.stem for path in names if path.suffix == ".yaml" and path.stem != "prompts")


def expand_suites(names: Sequence[str]) -> tuple[str, ...]:
    """The suites by name, `paper` replaced by its seven, each once.

    Raises:
        ValueError: there is no suite of this name.
    """
    known = suite_names()
    for name in names:
        if name not in (*known, "paper"):
            near = difflib.get_close_matches(name, [*known, "paper"], n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"found {name!r}, need some of paper, {', '.join(known)}{meant}")
    return tuple(dict.fromkeys(one for name in names for one in (PAPER if name == "paper" else (name,))))


@cache
def read_suite(name: str) -> Suite:
    """The suite of this name, which exists."""
    return Suite.model_validate(_read(name))


@cache
def read_prompts() -> Prompts:
    """The system message and the requests."""
    return Prompts.model_validate(_read("prompts"))


def _read(name: str) -> dict[str, object]:
    text = files("priml").joinpath("suites", f"{name}.yaml").read_text(encoding="utf-8")
    return cast(dict[str, object], yaml.safe_load(text))
