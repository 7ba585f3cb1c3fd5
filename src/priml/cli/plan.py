"""`priml plan CONFIG`: what a run needs on a machine, before it is started."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from priml.cli.commands import print_line
from priml.errors import UsageError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on machine and data."""
    machine = parser.add_argument_group("the machine (without any of these: the one this is)")
    machine.add_argument("--gpus", type=_number(int), metavar="N", help="devices in each node")
    machine.add_argument("--nodes", type=_number(int), metavar="M", default=1, help="nodes (%(default)s)")
    machine.add_argument("--gpu-memory", type=_number(float), metavar="GIB", help="memory of one device")
    machine.add_argument("--device", metavar="NAME", help="h100 (the default for GPUs), h200, a100, a800, rtx4090, cpu")
    machine.add_argument("--tflops", type=_number(float), metavar="X", help="its peak, TFLOP/s")
    machine.add_argument("--bandwidth", type=_number(float), metavar="X", help="of its memory, GB/s")
    machine.add_argument(
        "--link", type=_number(float), metavar="X", help="to devices of its node, GB/s in one direction"
    )
    machine.add_argument("--network", type=_number(float), metavar="X", help="to other nodes, GB/s per device")
    data = parser.add_argument_group("the data and the model (without these: assumptions, which the plan tells)")
    data.add_argument("--prompt-tokens", type=_number(float), metavar="X", help="mean length of a prompt")
    data.add_argument("--response-tokens", type=_number(float), metavar="X", help="mean length of a response")
    data.add_argument(
        "--pass-rate", type=_number(float), metavar="X", help="share of prompts that pass the filter, 0 to 1"
    )
    text = "a config.json that stands for that of policy.model (without it: the model's, or one beside CONFIG)"
    data.add_argument("--model-config", type=Path, metavar="FILE", help=text)


def run(args: argparse.Namespace) -> int:
    """Print the plan; 2 when something in it cannot be run."""
    from priml.config.load import load_config
    from priml.config.train import TrainConfig

    path = Path(args.config)
    cfg = load_config(TrainConfig, path, args.overrides)
    if args.pass_rate is not None and args.pass_rate > 1:
        raise UsageError(f"--pass-rate: found {args.pass_rate:g}, need a share between 0 and 1")
    from priml.commands.plan import PlanOptions, run_plan

    options = PlanOptions(**{name: getattr(args, name) for name in PlanOptions.__dataclass_fields__})
    plan, source = run_plan(cfg, options, settings=path)
    from priml.planner.text import write_plan

    print_line(write_plan(plan, source=source, color=sys.stdout.isatty()))
    return 2 if plan.refusals else 0


def _number(kind: type[int] | type[float]) -> Any:
    """A converter that wants a number above 0 and says so."""

    def convert(text: str) -> int | float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"found {text}, need a number above 0")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # how argparse calls what it wanted
    return convert
