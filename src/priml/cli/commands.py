"""One function per command: read the settings, import what is heavy, run, print what came of it."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from priml.cli.output import plain
from priml.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from priml.config.base import Settings

S = TypeVar("S", bound="Settings")


class _StderrHandler(logging.Handler):
    """Prints to what `sys.stderr` is at that moment: a progress bar replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(plain(self.format(record)), file=sys.stderr, flush=True)  # noqa: T201


def show_messages() -> None:
    """Write the messages of the `priml` loggers to stderr, one line each: they are no part of a command's output."""
    logger = logging.getLogger("priml")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_StderrHandler())


def print_line(text: str) -> None:
    """The output of a command."""
    print(plain(text), flush=True)  # noqa: T201


def sft(args: argparse.Namespace) -> None:
    """`priml sft CONFIG` or `priml sft RUN_DIR`."""
    from priml.config.sft import SftConfig

    given = _settings_or_run_dir(SftConfig, args)
    from priml.commands.sft import run_sft

    print_line(f"model: {run_sft(given)}")


def train(args: argparse.Namespace) -> None:
    """`priml train CONFIG` or `priml train RUN_DIR`."""
    from priml.config.train import TrainConfig

    given = _settings_or_run_dir(TrainConfig, args)
    from priml.commands.session import run_folder_from
    from priml.commands.train import run_training

    summary, folder = run_training(given), run_folder_from(given).path if isinstance(given, Path) else given.run_dir
    for name, scores in summary["accuracy"].items():
        print_line(f"{name:>6}: " + _describe(scores))
    if summary["best"] and summary["best"]["step"] < summary["steps"]:
        print_line(_describe_best(summary["best"], summary["accuracy"]["after"]["greedy"], folder))
    print_line(f"model: {folder / 'model'}\nreport: priml report {folder}")


def eval(args: argparse.Namespace) -> None:
    """`priml eval CONFIG`, `priml eval [--regrade] RUN_DIR` or `priml eval compare RUN_DIR RUN_DIR`."""
    if args.config == "compare":
        _compare(args.overrides)
        return
    from priml.config.eval import EvalConfig

    given = _settings_or_run_dir(EvalConfig, args)
    if args.regrade and not isinstance(given, Path):
        raise UsageError(f"--regrade: found the settings {args.config}, need the folder of an evaluation")
    from priml.commands.eval import run_eval

    folder = given if isinstance(given, Path) else given.run_dir
    try:
        results = run_eval(given, regrade=args.regrade)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; no response is lost: go on with: priml eval {folder}") from None
    for name, scores in results.items():
        print_line(f"{name}: " + _describe(scores))
    print_line(f"written: {folder / 'eval.json'}")


def _compare(folders: Sequence[str]) -> None:
    if len(folders) != 2:
        raise UsageError(f"eval compare: found {len(folders)} folders, need two: priml eval compare RUN_DIR RUN_DIR")
    from priml.commands.eval_compare import run_eval_compare

    print_line(run_eval_compare(Path(folders[0]), Path(folders[1])))


def prm_train(args: argparse.Namespace) -> None:
    """`priml prm train CONFIG` or `priml prm train RUN_DIR`."""
    from priml.config.prm import PrmTrainConfig

    given = _settings_or_run_dir(PrmTrainConfig, args)
    from priml.commands.prm_train import run_prm_training
    from priml.commands.session import run_folder_from

    summary, folder = run_prm_training(given), run_folder_from(given).path if isinstance(given, Path) else given.run_dir
    if summary["held_out"]:
        print_line("held out: " + "  ".join(f"{name} {value:.3f}" for name, value in summary["held_out"].items()))
    print_line(f"model: {folder / 'model'}\nreport: priml report {folder}")


def prm_score(args: argparse.Namespace) -> None:
    """`priml prm score CONFIG`."""
    from priml.config.prm import PrmScoreConfig

    cfg = _settings(PrmScoreConfig, args)
    from priml.commands.prm_score import run_prm_score

    print_line(run_prm_score(cfg))
    print_line(f"written: {cfg.run_dir / 'scores.parquet'}\npage: {cfg.run_dir / 'report.html'}")


def prm_rank(args: argparse.Namespace) -> None:
    """`priml prm rank CONFIG`."""
    from priml.config.prm import PrmRankConfig

    cfg = _settings(PrmRankConfig, args)
    from priml.commands.prm_rank import run_prm_rank

    print_line(run_prm_rank(cfg))
    print_line(f"written: {cfg.run_dir / 'rank.json'}\npage: {cfg.run_dir / 'report.html'}")


def prm_evaluate(args: argparse.Namespace) -> None:
    """`priml prm evaluate CONFIG`."""
    from priml.config.prm import PrmEvaluateConfig

    cfg = _settings(PrmEvaluateConfig, args)
    from priml.commands.prm_evaluate import run_prm_evaluate

    print_line(run_prm_evaluate(cfg))
    print_line(f"written: {cfg.run_dir / 'evaluation.json'}")


def data_prepare(args: argparse.Namespace) -> None:
    """`priml data prepare CONFIG` or `priml data prepare RUN_DIR`."""
    from priml.config.prepare import DataPrepareConfig

    given = _settings_or_run_dir(DataPrepareConfig, args)
    from priml.commands.data_prepare import run_data_prepare

    folder = given if isinstance(given, Path) else given.run_dir
    try:
        summary = run_data_prepare(given)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; go on with: priml data prepare {folder}") from None
    for one in summary["stages"]:
        lost = "".join(f", {count:,} {reason}" for reason, count in one["dropped"].items())
        print_line(f"{one['name']:>13}: {one['kept']:,} of {one['rows']:,} kept{lost}")
    print_line(f"written: {folder / 'train.parquet'}\ncard: {folder / 'README.md'}")


def report(args: argparse.Namespace) -> None:
    """`priml report RUN_DIR`."""
    from priml.report.page import write_report
    from priml.report.scores import holds_scores, write_scores_report

    folder = Path(args.run_dir)
    page = write_scores_report(folder) if holds_scores(folder) else write_report(folder)
    print_line(f"report: {page}")


def runs_list(args: argparse.Namespace) -> None:
    """`priml runs list FOLDER`."""
    from priml.commands.runs import list_runs, runs_table

    runs = list_runs(Path(args.folder))
    if args.json:
        for run in runs:
            print_line(json.dumps(run.asdict()))
    else:
        print_line(runs_table(runs, Path(args.folder), width=max(80, shutil.get_terminal_size((120, 0)).columns)))


def runs_show(args: argparse.Namespace) -> None:
    """`priml runs show RUN_DIR`."""
    from priml.commands.runs import show_run
    from priml.runs.folder import RunFolder

    print_line(show_run(RunFolder(Path(args.run_dir))))


def view(args: argparse.Namespace) -> None:
    """`priml view RUN_DIR`."""
    from priml.commands.view import run_view

    run_view([Path(args.run_dir)], args.port, print_line)


def try_run(args: argparse.Namespace) -> None:
    """`priml try RUN_DIR [PROMPT ...]`."""
    from priml.commands.try_run import run_try
    from priml.runs.folder import RunFolder

    print_line(run_try(RunFolder(Path(args.run_dir)), args.prompts, width=shutil.get_terminal_size((100, 0)).columns))


def quickstart(args: argparse.Namespace) -> None:
    """`priml quickstart`."""
    from priml.commands.quickstart import run_quickstart

    print_line(run_quickstart(Path(args.out), args.seed))


def verify(args: argparse.Namespace) -> None:
    """`priml verify FILE` or `priml verify --explain RESPONSE GOLD`."""
    from priml.config.load import parse_overrides
    from priml.config.verify import PairConfig, VerifyConfig

    overrides = list(args.overrides)
    if args.explain is not None:
        overrides[:0] = [args.file] if args.file else []
        cfg = parse_overrides(PairConfig, {"verify": {"kind": "math"}}, overrides, where="verify")
        from priml.commands.verify import explain_pair

        print_line(explain_pair(cfg, *args.explain))
        return
    if args.file is None:
        raise UsageError("verify: found no FILE, need one, or --explain RESPONSE GOLD")
    cfg = parse_overrides(VerifyConfig, {"path": args.file}, overrides, where="verify")
    from priml.commands.verify import run_verify

    for line in run_verify(cfg):
        print_line(line)


def doctor(args: argparse.Namespace) -> int:
    """`priml doctor`: 1 when something is missing that every user needs."""
    from priml.commands.doctor import check_machine

    missing = 0
    for finding in check_machine():
        print_line(f"{finding.state:<8}{finding.subject:<14}{finding.text}")
        missing += finding.state == "missing"
    advice = f"{missing} missing: type what stands beside it, then priml doctor again"
    print_line(advice if missing else "all that is needed is here")
    return 1 if missing else 0


def _settings(schema: type[S], args: argparse.Namespace) -> S:
    from priml.config.load import load_config

    return load_config(schema, Path(args.config), args.overrides)


def _settings_or_run_dir(schema: type[S], args: argparse.Namespace) -> S | Path:
    """The settings of a new run; or the folder of the run to resume, or its checkpoint. A resumed run keeps its
    settings, but one of `priml train` may get more steps."""
    path = Path(args.config)
    if not path.is_dir():
        return _settings(schema, args)
    given = dict(text.split("=", 1) for text in args.overrides)
    steps, start = given.pop("steps", None), given.pop("from", None)
    if given or (start is not None and not re.fullmatch(r"\d{1,9}", start)):
        raise UsageError(
            f"{path}: found {' '.join(args.overrides)}, but a resumed run keeps its settings; leave it away "
            "(only from=000004, the checkpoint to go on from, and steps=+200, more steps, can be given)"
        )
    if steps is not None:
        from priml.runs.extend import extend
        from priml.runs.folder import RunFolder

        extend(RunFolder(path), steps)
    return path if start is None else path / "checkpoints" / f"{int(start):06d}"


def _describe_best(best: dict[str, Any], last: dict[str, float], folder: Path) -> str:
    """An earlier evaluation that was better than the last."""
    is_sure = last["high"] < best["low"]
    when = f"after step {best['step']}" if best["step"] else "before training"
    found = f"{'WORSE' if is_sure else 'no better'} than {when}: held-out greedy {best['mean']:.3f} there"
    if (folder / "best").is_dir():
        found += f", its policy is in {folder / 'best'}"
    return f"{found}; lower policy.optimizer.lr" if is_sure else found


def _describe(scores: dict[str, Any]) -> str:
    parts = [
        f"{label} {scores[name]['mean']:.3f} [{scores[name]['low']:.3f}, {scores[name]['high']:.3f}]"
        for name, label in (("greedy", "greedy"), ("sampled", "avg@k"))
        if name in scores
    ]
    parts += [f"pass@{k} {a['mean']:.3f}" for k, a in scores.get("pass_at", {}).items() if k != "1"]
    if scores.get("undecided"):
        parts.append(f"{scores['undecided']} undecided")
    return "  ".join(parts)
