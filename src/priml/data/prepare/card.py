"""The data card of a prepared training set: what it is made of, and what each stage did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import priml

MEANINGS = {
    "read": "Rows were read.",
    "rules": "Problems that are no open questions with an answer that can be checked were dropped.",
    "dedup": "Of problems that repeat each other the first was kept.",
    "decontaminate": "Problems of benchmarks were dropped.",
    "programs": "Tests were run: on the known solution, which must pass, and on stubs, which must not.",
    "difficulty": "A policy tried each problem; those that it solved too seldom or too often were dropped.",
}
"""Of each stage, in their order."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a stage did."""

    name: str
    rows: int
    """That entered it."""
    kept: int
    dropped: Mapping[str, int]
    """By reason."""
    noted: Mapping[str, int]
    """Rows that stayed, by what is to be known of them."""
    more: Mapping[str, float | str]
    """Numbers of this stage alone, by what they say."""


def write_card(
    stages: Sequence[StageSummary], sources: Mapping[str, tuple[int, int, str]], kinds: Mapping[str, int], settings: str
) -> str:
    """The card in Markdown, with the head that the Hub reads.

    `sources`: rows read, rows kept and sha256 by name. `kinds`: rows by kind.
    """
    total = sum(kinds.values())
    size = next(name for limit, name in _SIZES if total < limit)
    head = ["---", "task_categories:", "- text-generation", "size_categories:", f"- {size}", "tags:"]
    head += [*(f"- {kind}" for kind in kinds), "- reinforcement-learning", "configs:", "- config_name: default"]
    head += ["  data_files:", "  - split: train", "    path: train.parquet", "---"]
    body = [f"# {total:,} problems for reinforcement learning", ""]
    body += [
        f"Prepared by `priml data prepare` {priml.__version__}. Rows are those of Eurus-2-RL-Data, with an `id`.",
        "",
    ]
    body += ["| source | rows read | rows kept | sha256 |", "|---|---|---|---|"]
    body += [f"| {name} | {read:,} | {kept:,} | `{digest[:16]}` |" for name, (read, kept, digest) in sources.items()]
    body += ["", "The licences are those of the sources.", "", "## Stages", ""]
    body += ["| stage | rows | kept | dropped | noted |", "|---|---|---|---|---|"]
    body += [
        f"| {one.name} | {one.rows:,} | {one.kept:,} | {_counts(one.dropped)} | {_counts(one.noted)} |"
        for one in stages
    ]
    body += ["", *(f"- **{one.name}** {MEANINGS[one.name]}{_more(one)}" for one in stages)]
    missing = [name for name in MEANINGS if name not in {one.name for one in stages}]
    if missing:
        body += ["", f"Not done: {', '.join(missing)}."]
    return "\n".join([*head, "", *body, "", "## Settings", "", "```yaml", settings.rstrip(), "```", ""])


_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (float("inf"), "n>1M"))


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in found.items()) or "none"


def _more(one: StageSummary) -> str:
    return "".join(f" {name[0].upper()}{name[1:]}: {value}." for name, value in one.more.items())
