"""`priml prm train | score | rank | evaluate`: the implicit PRM by itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from priml.cli.output import print_line, refuse_overrides, say
from priml.config.load import load_config


def train(args: argparse.Namespace) -> int:
    """`priml prm train CONFIG` or `priml prm train RUN_DIR`."""
    from priml.config.prm import PrmTrainConfig

    path = Path(args.config)
    if path.is_dir():
        refuse_overrides(path, args.overrides)
        from priml.commands.prm_train import resume_prm_training

        summary, folder = resume_prm_training(path, say), path
    else:
        cfg = load_config(PrmTrainConfig, path, args.overrides)
        from priml.commands.prm_train import run_prm_training

        summary, folder = run_prm_training(cfg, say), cfg.run_dir
    if summary["held_out"]:
        print_line("held out: " + "  ".join(f"{name} {value:.3f}" for name, value in summary["held_out"].items()))
    print_line(f"model: {folder / 'model'}\nreport: priml report {folder}")
    return 0


def score(args: argparse.Namespace) -> int:
    """`priml prm score CONFIG`."""
    from priml.config.prm import PrmScoreConfig

    cfg = load_config(PrmScoreConfig, Path(args.config), args.overrides)
    from priml.commands.prm_score import run_prm_score

    print_line(run_prm_score(cfg, say))
    print_line(f"written: {cfg.run_dir / 'scores.parquet'}\npage: {cfg.run_dir / 'report.html'}")
    return 0


def rank(args: argparse.Namespace) -> int:
    """`priml prm rank CONFIG`."""
    from priml.config.prm import PrmRankConfig

    cfg = load_config(PrmRankConfig, Path(args.config), args.overrides)
    from priml.commands.prm_rank import run_prm_rank

    print_line(run_prm_rank(cfg, say))
    print_line(f"written: {cfg.run_dir / 'rank.json'}\npage: {cfg.run_dir / 'report.html'}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`priml prm evaluate CONFIG`."""
    from priml.config.prm import PrmEvaluateConfig

    cfg = load_config(PrmEvaluateConfig, Path(args.config), args.overrides)
    from priml.commands.prm_evaluate import run_prm_evaluate

    print_line(run_prm_evaluate(cfg, say))
    print_line(f"written: {cfg.run_dir / 'evaluation.json'}")
    return 0
