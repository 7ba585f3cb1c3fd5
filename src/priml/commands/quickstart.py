"""`priml quickstart`: the files of examples/laptop-math one after another, and what came of it in a table.

Like `make`, it does only what is not done yet: a finished phase is skipped, an interrupted one is resumed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import priml
from priml.config.base import Settings
from priml.config.eval import EvalConfig
from priml.config.load import load_config
from priml.config.sft import SftConfig
from priml.config.train import TrainConfig
from priml.errors import UsageError

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Settings)
R = TypeVar("R", SftConfig, TrainConfig, EvalConfig)
Scores = dict[str, Any]


def run_quickstart(out: Path, seed: int, *, example: Path | None = None) -> str:
    """SFT into `out/sft`, PRIME into `out` itself, the same without a PRM into `out/outcome_only`, evaluation into
    `out/eval`; returns the table of results.

    `example` is the folder of sft.yaml, train.yaml and eval.yaml; examples/laptop-math when it is None.

    Raises:
        UsageError: `out` holds a run of other settings or another seed.
    """
    out = out.absolute()  # runs record absolute paths; these are compared below
    package = Path(priml.__file__).parent
    installed, checkout = package / "laptop_math", package.parent.parent / "examples" / "laptop-math"
    folder = example or (installed if installed.is_dir() else checkout)
    given = {"policy.model": out / "sft" / "model", "seed": seed}
    sft = _load(SftConfig, folder / "sft.yaml", {"run_dir": out / "sft", "seed": seed})
    prime = _load(TrainConfig, folder / "train.yaml", {"run_dir": out, **given})
    outcome_only = _load(TrainConfig, folder / "train.yaml", {"run_dir": out / "outcome_only", **given, "prm": None})
    evaluation = _load(
        EvalConfig, folder / "eval.yaml", {"run_dir": out / "eval", "model": out / "model", "seed": seed}
    )
    for cfg in (sft, prime, outcome_only, evaluation):
        _refuse_other_settings(cfg)

    # Torch is imported by the phases that need it: to look again at a finished quickstart takes a second.
    seconds = _Stopwatch(out / "quickstart.json")
    if not (sft.run_dir / "summary.json").is_file():
        from priml.commands.sft import run_sft

        logger.info(f"1/4 SFT: a tiny model learns the task from a teacher that makes mistakes -> {sft.run_dir}")
        seconds.measure("SFT", lambda: run_sft(_or_folder_to_resume(sft)))
    for number, name, cfg in ((2, "PRIME", prime), (3, "outcome-only", outcome_only)):
        if not (cfg.run_dir / "summary.json").is_file():
            from priml.commands.train import run_training

            how = "only final answers are verified" if cfg.prm else "the same with prm=null"
            logger.info(f"{number}/4 {name}: {cfg.steps} steps, {how} -> {cfg.run_dir}")
            seconds.measure(name, partial(run_training, _or_folder_to_resume(cfg)))
    if "evaluation" not in seconds.spent:
        from priml.commands.eval import run_eval

        logger.info(f"4/4 evaluation on fresh problems -> {evaluation.run_dir}")
        seconds.measure("evaluation", lambda: run_eval(_or_folder_to_resume(evaluation)))

    from priml.report.page import write_report

    fresh = json.loads((evaluation.run_dir / "eval.json").read_text())
    lines = [
        *_table(_accuracy(prime), _accuracy(outcome_only), next(iter(fresh.values()))),
        f"sampled in training: {_sampled(prime):,} responses with PRIME, {_sampled(outcome_only):,} without",
        "time: " + ", ".join(f"{phase} {spent:.0f} s" for phase, spent in seconds.spent.items()),
        f"report: {write_report(out)}",
        f"again from the start: remove {out}, or take another folder or seed: priml quickstart --out DIR --seed N",
    ]
    return "\n".join(lines)


def _accuracy(cfg: TrainConfig) -> dict[str, Scores]:
    """Held-out accuracy of a finished run, `before` and `after`."""
    return json.loads((cfg.run_dir / "summary.json").read_text())["accuracy"]


def _sampled(cfg: TrainConfig) -> int:
    """Responses that a run sampled for training, those of dropped prompts as well; step 0 has sampled none."""
    lines = (cfg.run_dir / "metrics.jsonl").read_text().splitlines()
    return cfg.sampling.group_size * sum(json.loads(line).get("filter/sampled", 0) for line in lines)


class _Stopwatch:
    """Seconds per finished phase, kept in a file: a phase that stands there is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def measure(self, phase: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self.spent[phase] = round(time.perf_counter() - began, 1)
        self._path.write_text(json.dumps(self.spent) + "\n")


def _load(schema: type[C], path: Path, given: dict[str, Any]) -> C:
    return load_config(schema, path, [f"{key}={json.dumps(value, default=str)}" for key, value in given.items()])


def _refuse_other_settings(cfg: SftConfig | TrainConfig | EvalConfig) -> None:
    recorded = cfg.run_dir / "config.yaml"
    if recorded.is_file() and _without_day(load_config(type(cfg), recorded)) != _without_day(cfg):
        raise UsageError(
            f"{cfg.run_dir}: holds a run with other settings or another seed (see {recorded}); "
            "remove the folder, or choose another: priml quickstart --out DIR"
        )


def _without_day(cfg: SftConfig | TrainConfig | EvalConfig) -> dict[str, Any]:
    """Settings as they were given: a run adds the day on which it began."""
    tree = cfg.model_dump(mode="json")
    (tree["data"] if isinstance(cfg, TrainConfig) else tree)["prompt"]["date"] = None
    return tree


def _or_folder_to_resume(cfg: R) -> R | Path:
    return cfg.run_dir if (cfg.run_dir / "config.yaml").is_file() else cfg


def _table(prime: dict[str, Scores], outcome_only: dict[str, Scores], fresh: Scores) -> list[str]:
    """Accuracies on held-out problems with 95 % intervals, and what they amount to."""
    before, after, without = prime["before"], prime["after"], outcome_only["after"]
    rows = [
        ("before (SFT)", before),
        ("after (PRIME)", after),
        ("after (prm=null)", without),
        ("PRIME, fresh", fresh),
    ]
    lines = ["", f"{'held-out accuracy':<18}{'problems':>9}   {'greedy':<26}sampled, one try"]
    for name, scores in rows:
        cells = [_percent(scores[kind]) if kind in scores else "-" for kind in ("greedy", "sampled")]
        lines.append(f"{name:<18}{scores['greedy']['n']:>9}   {cells[0]:<26}{cells[1]}")
    for kind in ("greedy", "sampled"):
        lines.append(
            f"{kind}: PRIME {_difference(after[kind], before[kind])} against SFT, "
            f"{_difference(after[kind], without[kind])} against prm=null"
        )
    return lines


def _difference(ours: dict[str, float], other: dict[str, float]) -> str:
    """Points between two means, and whether their intervals leave a doubt."""
    disjoint = ours["low"] > other["high"] or other["low"] > ours["high"]
    points = f"{100 * (ours['mean'] - other['mean']):+.1f} points"
    return points if disjoint else f"{points} (the 95 % intervals overlap)"


def _percent(score: dict[str, float]) -> str:
    return f"{100 * score['mean']:5.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
