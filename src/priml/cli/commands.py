"""One function per command: read settings first, import what is heavy after."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from priml.cli.output import print_line, refuse_overrides, say
from priml.config.load import load_config
from priml.errors import Interrupted


def sft(args: argparse.Namespace) -> int:
    """`priml sft CONFIG` or `priml sft RUN_DIR`."""
    from priml.config.sft import SftConfig

    path = Path(args.config)
    if path.is_dir():
        refuse_overrides(path, args.overrides)
        from priml.commands.sft import resume_sft

        model = resume_sft(path, say)
    else:
        cfg = load_config(SftConfig, path, args.overrides)
        from priml.commands.sft import run_sft

        model = run_sft(cfg, say)
    print_line(f"model: {model}")
    return 0


def train(args: argparse.Namespace) -> int:
    """`priml train CONFIG` or `priml train RUN_DIR`."""
    from priml.config.train import TrainConfig

    path = Path(args.config)
    if path.is_dir():
        refuse_overrides(path, args.overrides)
        from priml.commands.train import resume_training

        summary = resume_training(path, say)
        folder = path
    else:
        cfg = load_config(TrainConfig, path, args.overrides)
        from priml.commands.train import run_training

        summary = run_training(cfg, say)
        folder = cfg.run_dir
    for name, scores in summary["accuracy"].items():
        print_line(f"{name:>6}: " + _describe(scores))
    print_line(f"model: {folder / 'model'}\nreport: priml report {folder}")
    return 0


def eval(args: argparse.Namespace) -> int:
    """`priml eval CONFIG`."""
    from priml.config.eval import EvalConfig

    cfg = load_config(EvalConfig, Path(args.config), args.overrides)
    from priml.commands.eval import run_eval

    try:
        results = run_eval(cfg, say)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; an evaluation keeps nothing unfinished: remove {cfg.run_dir} and start again"
        ) from None
    for name, scores in results.items():
        print_line(f"{name}: " + _describe(scores))
    print_line(f"written: {cfg.run_dir / 'eval.json'}")
    return 0


def prm(args: argparse.Namespace) -> int:
    """`priml prm train`, `score`, `rank` or `evaluate`."""
    from priml.cli import prm as offline

    return getattr(offline, args.action)(args)


def plan(args: argparse.Namespace) -> int:
    """`priml plan CONFIG`."""
    from priml.cli.plan import run

    return run(args)


def report(args: argparse.Namespace) -> int:
    """`priml report RUN_DIR`."""
    folder = Path(args.run_dir)
    from priml.report.page import write_report
    from priml.report.scores import holds_scores, write_scores_report

    page = write_scores_report(folder) if holds_scores(folder) else write_report(folder)
    print_line(f"report: {page}")
    return 0


def quickstart(args: argparse.Namespace) -> int:
    """`priml quickstart`."""
    from priml.cli.quickstart import run

    return run(Path(args.out), args.seed, print_line)


def doctor(args: argparse.Namespace) -> int:
    """`priml doctor`."""
    from priml.cli.doctor import examine

    return examine(print_line)


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
