"""`priml data prepare`: a training set from raw problems, stage by stage; a new one, or the rest of one."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from priml.commands.eval import run_eval
from priml.commands.session import explain_full_disk
from priml.config.data import FileSource
from priml.config.eval import EvalConfig
from priml.config.graders import CodeVerifier, MathVerifier, MixedVerifier
from priml.config.load import dump_config
from priml.config.prepare import DataPrepareConfig, Decontaminate, Difficulty
from priml.config.suites import read_suite
from priml.data.prepare.card import StageSummary, write_card
from priml.data.prepare.decisions import KEPT, Decision, count_decisions, dropped, read_decisions, write_decisions
from priml.data.prepare.eurus import can_be_written, write_rows
from priml.data.prepare.fingerprints import Fingerprint, fingerprint
from priml.data.prepare.overlaps import Benchmarks, find_contaminated, find_duplicates
from priml.data.prepare.rules import dropped_for, question
from priml.data.sources import with_unique_ids
from priml.errors import RunError, UsageError
from priml.factories.data import LoadedSource, load_source
from priml.factories.eval_sets import load_suite_problems
from priml.factories.program_check import check_programs
from priml.files import write_json, write_whole
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, changes_since, check_unchanged, create, load_settings_to_resume
from priml.runs.owner import owned
from priml.types import Problem

logger = logging.getLogger(__name__)

_COMMAND = "data prepare"
More = dict[str, float | str]
Decide = Callable[[Sequence[Problem]], tuple[list[Decision], More]]
"""The decision of each problem that enters a stage, and what else is to be said."""


def run_data_prepare(given: DataPrepareConfig | Path) -> dict[str, Any]:
    """Prepare a training set; returns the summary. `given`: settings, or the folder of a preparation to go on with.

    Raises:
        UsageError: the folder is taken, or data or settings are not those it began with; or a source holds a benchmark.
        RunError: no row is left.
    """
    cfg = given if isinstance(given, DataPrepareConfig) else _settings_to_resume(given)
    folder = RunFolder(cfg.run_dir)
    if isinstance(given, DataPrepareConfig):
        folder.check_unused(hint=f"go on with: priml {_COMMAND} {folder}; or ")
    sources = {name: load_source(source) for name, source in cfg.data.items()}
    benchmarks = _load_benchmarks(cfg.decontaminate) if cfg.decontaminate else {}
    data = {name: one.digest for name, one in sources.items()}
    data |= {f"decontaminate {name}": one.digest for name, one in benchmarks.items()}
    begun_with = Origin(_COMMAND, 0, data, {}, {})
    work = _Preparation(cfg, folder, sources, {name: one.problems for name, one in benchmarks.items()})
    work.check_benchmarks()
    with explain_full_disk(folder, lambda: f"go on with: priml {_COMMAND} {folder}"), owned(folder):
        if isinstance(given, Path):
            check_unchanged(folder, begun_with)
        else:
            create(folder, cfg, None, begun_with, threads=torch.get_num_threads())
        return work.finish()


def _settings_to_resume(path: Path) -> DataPrepareConfig:
    folder = RunFolder(path)
    if folder.summary.is_file() and (path / "train.parquet").is_file():
        raise UsageError(f"{path}: this preparation is finished; what it did is in {path}/README.md")
    cfg = load_settings_to_resume(DataPrepareConfig, folder, command=_COMMAND)
    if any(change.endswith("edited") for change in changes_since(folder, threads=torch.get_num_threads())):
        raise UsageError(
            f"{folder.config}: found other settings than those it began with, and its stages would not fit together; "
            f"restore the file, or start with it in another folder: priml {_COMMAND} {folder.config} run_dir=OTHER"
        )
    return cfg


def _load_benchmarks(settings: Decontaminate) -> dict[str, LoadedSource]:
    own = {name: load_source(source) for name, source in (settings.data or {}).items()}
    suites = {name: load_suite_problems(name, read_suite(name), settings.data_root) for name in settings.suites}
    return own | suites


@dataclass
class _Preparation:
    cfg: DataPrepareConfig
    folder: RunFolder
    sources: Mapping[str, LoadedSource]
    benchmark_problems: Mapping[str, Sequence[Problem]]
    _prints: dict[str, Fingerprint] = field(default_factory=dict)

    @cached_property
    def benchmarks(self) -> Benchmarks:
        return Benchmarks.of(self.benchmark_problems)

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """All that could be read, of all sources, under ids of their own."""
        return with_unique_ids(problem for one in self.sources.values() for problem in one.problems)

    def check_benchmarks(self) -> None:
        if self.benchmark_problems:
            texts = {
                name: frozenset(fingerprint(question(problem)).text for problem in one.problems)
                for name, one in self.sources.items()
            }
            self.benchmarks.check_not_among(texts)

    def stages(self) -> dict[str, Decide]:
        """Those that the settings ask for, in their order."""
        cfg = self.cfg
        asked: dict[str, Decide | None] = {
            "rules": self._rules if cfg.rules or cfg.drawings == "drop" else None,
            "dedup": self._dedup if cfg.dedup else None,
            "decontaminate": self._decontaminate if cfg.decontaminate else None,
            "programs": self._programs if cfg.programs else None,
            "difficulty": self._difficulty if cfg.difficulty else None,
        }
        return {name: decide for name, decide in asked.items() if decide}

    def finish(self) -> dict[str, Any]:
        """Do the stages that are not done, and write what is left."""
        (self.folder.path / "stages").mkdir(exist_ok=True)
        done = [self._read()]
        left = [problem for problem in self.problems if can_be_written(problem)]
        for name, decide in self.stages().items():
            summary, left = self._do(len(done) + 1, name, decide, left)
            done.append(summary)
            if not left:
                raise RunError(f"{self.folder}: {name} drops every row that is left; see {self.folder}/stages for why")
        write_rows(self.folder.path / "train.parquet", left)
        write_whole(self.folder.path / "README.md", self._card(done, left))
        summary = {"rows": len(left), "stages": [asdict(one) for one in done]}
        write_json(self.folder.summary, summary)
        return summary

    def _card(self, done: Sequence[StageSummary], left: Sequence[Problem]) -> str:
        kept = {problem.id for problem in left}
        ids = iter(problem.id for problem in self.problems)
        sources = {
            name: (len(one.problems) + len(one.skipped), sum(next(ids) in kept for _ in one.problems), one.digest)
            for name, one in self.sources.items()
        }
        return write_card(done, sources, Counter(problem.kind for problem in left), dump_config(self.cfg))

    def _path(self, number: int, name: str) -> Path:
        return self.folder.path / "stages" / f"{number}-{name}.parquet"

    def _read(self) -> StageSummary:
        bad = [
            (Problem(f"{name}:{row.row}", "", "", name), dropped("unreadable", row.reason))
            for name, one in self.sources.items()
            for row in one.skipped
        ]
        unfit = dropped("its tests have no form in such a file")
        rows = [*((problem, KEPT if can_be_written(problem) else unfit) for problem in self.problems), *bad]
        path = self._path(1, "read")
        if not path.is_file():
            write_decisions(path, rows)
        return _summary("read", [decision for _, decision in rows], {})

    def _do(
        self, number: int, name: str, decide: Decide, problems: Sequence[Problem]
    ) -> tuple[StageSummary, list[Problem]]:
        path, more_path = self._path(number, name), self._path(number, name).with_suffix(".json")
        began = time.perf_counter()
        is_done = path.is_file()
        if not is_done:
            decisions, more = decide(problems)
            write_json(more_path, more)
            write_decisions(path, list(zip(problems, decisions, strict=True)))
        found = read_decisions(path)
        if [row for row, _ in found] != [problem.id for problem in problems]:
            raise UsageError(
                f"{path}: found other rows than those that enter this stage; remove it, and the later ones"
            )
        decisions = [decision for _, decision in found]
        summary = _summary(name, decisions, _read_json(more_path))
        took = "done before" if is_done else f"{time.perf_counter() - began:.1f} s"
        logger.info(f"{name}: {summary.rows:,} rows, {summary.kept:,} kept{_reasons(summary.dropped)} ({took})")
        return summary, [problem for problem, decision in zip(problems, decisions, strict=True) if decision.is_kept]

    # --- stages ------------------------------------------------------------------------------------------------------

    def _rules(self, problems: Sequence[Problem]) -> tuple[list[Decision], More]:
        reasons = [dropped_for(p, self.cfg.rules, drawings=self.cfg.drawings == "keep") for p in problems]
        return [dropped(reason) if reason else KEPT for reason in reasons], {}

    def _dedup(self, problems: Sequence[Problem]) -> tuple[list[Decision], More]:
        assert self.cfg.dedup, "the stage is asked for"
        settings = self.cfg.dedup
        return find_duplicates(
            problems,
            self._fingerprints(problems),
            threshold=settings.jaccard,
            drop_templates=settings.templates == "drop",
        ), {}

    def _decontaminate(self, problems: Sequence[Problem]) -> tuple[list[Decision], More]:
        assert self.cfg.decontaminate, "the stage is asked for"
        settings = self.cfg.decontaminate
        decisions, touching = find_contaminated(
            self._fingerprints(problems),
            self.benchmarks,
            threshold=settings.jaccard,
            share=settings.shared,
            drop_templates=settings.templates == "drop",
        )
        names = ", ".join(self.benchmark_problems)
        return decisions, {"rows that share any run of eight words": touching, "benchmarks": names}

    def _programs(self, problems: Sequence[Problem]) -> tuple[list[Decision], More]:
        assert self.cfg.programs, "the stage is asked for"
        return check_programs(problems, self.cfg.programs), {}

    def _difficulty(self, problems: Sequence[Problem]) -> tuple[list[Decision], More]:
        assert self.cfg.difficulty, "the stage is asked for"
        settings = self.cfg.difficulty
        rates = _pass_rates(settings, problems, self.folder.path / "difficulty")
        return [_by_rate(rates.get(problem.id), settings) for problem in problems], {"policy": settings.model}

    def _fingerprints(self, problems: Sequence[Problem]) -> list[Fingerprint]:
        for problem in problems:
            if problem.id not in self._prints:
                self._prints[problem.id] = fingerprint(question(problem))
        return [self._prints[problem.id] for problem in problems]


def _pass_rates(settings: Difficulty, problems: Sequence[Problem], folder: Path) -> dict[str, float]:
    """Mean outcome of the responses to each problem that fits; an evaluation in a folder of its own, which goes on
    where it was interrupted."""
    rows = folder.with_name("difficulty-problems.parquet")
    if not RunFolder(folder).config.is_file():
        write_rows(rows, problems)
        both = MixedVerifier(kind="mixed", kinds={"math": MathVerifier(), "code": CodeVerifier()})
        shared = settings.model_dump(exclude={"low", "high", "verify", "prompt", "sampler", "backend"})
        run_eval(
            EvalConfig(
                run_dir=folder,
                data={"problems": FileSource(path=rows)},
                greedy=False,
                verify=settings.verify or both,
                prompt=settings.prompt,
                sampler=settings.sampler,
                backend=settings.backend,
                **shared,
            )
        )
    else:
        run_eval(folder)
    outcomes: dict[str, list[float]] = {}
    for row in pq.read_table(folder / "problems.parquet", columns=["problem_id", "outcome"]).to_pylist():
        if row["outcome"] is not None:
            outcomes.setdefault(row["problem_id"], []).append(row["outcome"])
    return {problem: sum(found) / len(found) for problem, found in outcomes.items()}


def _by_rate(rate: float | None, settings: Difficulty) -> Decision:
    if rate is None:
        return dropped("prompt too long, or all responses undecided")
    if rate < settings.low:
        return dropped("too hard", value=rate)
    return dropped("too easy", value=rate) if rate > settings.high else replace(KEPT, value=rate)


def _summary(name: str, decisions: Sequence[Decision], more: More) -> StageSummary:
    return StageSummary(
        name, len(decisions), sum(decision.is_kept for decision in decisions), **count_decisions(decisions), more=more
    )


def _reasons(counts: Mapping[str, int]) -> str:
    return "".join(f", {count:,} {reason}" for reason, count in counts.items())


def _read_json(path: Path) -> More:
    return json.loads(path.read_text(encoding="utf-8"))
