"""`priml COMMAND ...`: parse, dispatch, turn errors into one clear message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from priml import __version__
from priml.cli.plan import add_options as plan_options
from priml.errors import PrimlError

_EPILOG = "Settings can be overridden on the command line: priml train config.yaml policy.optimizer.lr=1e-6 prm=null"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 done; 1 the run failed; 2 wrong usage or settings; 130 interrupted."""
    args = _parse(argv)
    try:
        return _dispatch(args)
    except PrimlError as error:
        if args.debug:
            traceback.print_exc()
        for text in (error, *getattr(error, "__notes__", ())):
            print(f"priml: {text}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("priml: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:  # the last line: whatever it is, no half-printed traceback
        if args.debug:
            raise
        place = f"{type(error).__name__}: {error}"
        print(f"priml: unexpected failure: {place}\n(add --debug for the traceback)", file=sys.stderr)  # noqa: T201
        return 1


def run() -> int:
    """`main` as the installed command: the exit code holds even when a signal comes after the last word."""
    code = main()
    # On its way out the interpreter puts the default handlers back; a late Ctrl-C would end it by a signal instead.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Overrides may also stand behind options, which argparse alone does not see."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in text and text[0] != "-" for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _dispatch(args: argparse.Namespace) -> int:
    # Imported late: `priml --help` and refused settings must not wait for torch.
    from priml.cli import commands

    return getattr(commands, args.command)(args)


class _Parser(argparse.ArgumentParser):
    """Errors in our own form: what was found, what was needed, and where to read on."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        needed = "the following arguments are required: "
        if message.startswith(needed):  # argparse counts the overrides, of which there may be none
            message = f"found no {message.removeprefix(needed).removesuffix(', key=value')}, need one"
        elif "invalid choice" in message:
            found = message.split("invalid choice: '")[-1].partition("'")[0]
            names = re.findall(r"'([^']+)'", message.partition("(choose from ")[2])
            near = difflib.get_close_matches(found, names, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            message = f"found {found!r}, need one of {', '.join(names)}{meant}"
        self.exit(2, f"{self.prog}: {message}\nRead on with: {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(
        prog="priml",
        description="PRIME for language models: reinforcement learning with implicit process rewards.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"priml {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    def configured(
        name: str, text: str, config_help: str = "a YAML file", *, under: Any = commands
    ) -> argparse.ArgumentParser:
        sub = under.add_parser(name, help=text, description=text, parents=[common])
        sub.add_argument("config", metavar="CONFIG", help=config_help)
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, later wins")
        return sub

    quickstart = command("quickstart", "The whole story on a laptop: SFT, PRIME, evaluation, report")
    quickstart.add_argument("--out", metavar="DIR", default="runs/quickstart", help="output folder (%(default)s)")
    quickstart.add_argument("--seed", type=int, default=0, help="seed of everything (%(default)s)")
    configured("sft", "Supervised warm start; resumes a run folder", "a YAML file, or a run folder")
    configured("train", "PRIME, or outcome-only RL with prm=null; resumes a run folder", "a YAML file, or a run folder")
    configured("eval", "Accuracy on held-out problems with confidence intervals")
    text = "The implicit PRM by itself, without reinforcement learning"
    prm = commands.add_parser("prm", help=text, description=text)
    actions = prm.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = "Learn from labels of whole responses, or pairs; resumes a run folder"
    configured("train", train, "a YAML file, or a run folder", under=actions)
    configured("score", "Rewards of tokens and steps for given responses", under=actions)
    configured("rank", "Best-of-n and weighted majority vote", under=actions)
    configured("evaluate", "ProcessBench and PRMBench", under=actions)
    plan_options(configured("plan", "Batch arithmetic, memory and time of a training run; loads no weights"))
    report = command("report", "Write RUN_DIR/report.html, one self-contained page")
    report.add_argument("run_dir", metavar="RUN_DIR")
    command("doctor", "What is here, what is missing, and what to type")
    return parser


if __name__ == "__main__":
    sys.exit(run())
