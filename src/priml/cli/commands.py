"""One function per command: read settings first, import what is heavy after."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from priml.config.load import load_config
from priml.errors import UsageError


def sft(args: argparse.Namespace) -> int:
    """`priml sft CONFIG`."""
    from priml.config.sft import SftConfig

    cfg = load_config(SftConfig, Path(args.config), args.overrides)
    from priml.build import run_sft

    folder = run_sft(cfg, _say)
    _print(f"model: {folder}")
    return 0


def train(args: argparse.Namespace) -> int:
    """`priml train CONFIG` or `priml train RUN_DIR`."""
    from priml.config.train import TrainConfig

    path = Path(args.config)
    if path.is_dir():
        if args.overrides:
            raise UsageError(f"{path}: a resumed run keeps its settings; drop {' '.join(args.overrides)}")
        from priml.build import resume_training

        summary = resume_training(path, _say)
        folder = path
    else:
        cfg = load_config(TrainConfig, path, args.overrides)
        from priml.build import run_training

        summary = run_training(cfg, _say)
        folder = cfg.run_dir
    for name, scores in summary["accuracy"].items():
        _print(f"{name:>6}: " + _describe(scores))
    _print(f"model: {folder / 'model'}\nreport: priml report {folder}")
    return 0


def eval(args: argparse.Namespace) -> int:
    """`priml eval CONFIG`."""
    from priml.config.eval import EvalConfig

    cfg = load_config(EvalConfig, Path(args.config), args.overrides)
    from priml.build import run_eval

    for name, scores in run_eval(cfg, _say).items():
        _print(f"{name}: " + _describe(scores))
    _print(f"written: {cfg.run_dir / 'eval.json'}")
    return 0


def report(args: argparse.Namespace) -> int:
    """`priml report RUN_DIR`."""
    from priml.report.page import write_report

    _print(f"report: {write_report(Path(args.run_dir))}")
    return 0


def quickstart(args: argparse.Namespace) -> int:
    """`priml quickstart`."""
    from priml.cli.quickstart import run

    return run(Path(args.out), args.seed, _print)


def doctor(args: argparse.Namespace) -> int:
    """`priml doctor`."""
    from priml.cli.doctor import examine

    return examine(_print)


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


def _say(text: str) -> None:
    """For people watching: not part of a command's output."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201
