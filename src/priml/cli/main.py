"""`priml COMMAND ...`: parse, dispatch, turn errors into one clear message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from priml import __version__
from priml.cli import commands, plan
from priml.cli.output import LenientStream, plain
from priml.errors import PrimlError

Run = Callable[[argparse.Namespace], int | None]
_PRINTED = (commands.verify, commands.doctor, commands.runs_list, commands.runs_show, commands.try_run, plan.run)
"""Commands whose results are printed, not files."""
_EPILOG = "Settings can be overridden on the command line: priml train config.yaml policy.optimizer.lr=1e-6 prm=null"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 done; 1 the run failed; 2 wrong usage or settings; 130 interrupted."""
    args = _parse(argv)
    # A reader that went away needs nothing more. Any other failure matters where what is printed is the result.
    forgives = BrokenPipeError if args.run in _PRINTED else OSError
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (LenientStream(stream, forgives=forgives) for stream in (out, err))
    previous = _end_as_by_ctrl_c()
    try:
        return _run(args)
    finally:
        sys.stdout, sys.stderr = out, err
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_as_by_ctrl_c() -> dict[signal.Signals, Any]:
    """What cluster schedulers and closed terminals send ends a command with a message, too; returns what did before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # What is ignored stays so: SIGHUP under nohup.
    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    return {number: signal.signal(number, signal.default_int_handler) for number in heeded}


def _run(args: argparse.Namespace) -> int:
    commands.show_messages()
    try:
        return args.run(args) or 0
    except PrimlError as error:
        if args.debug:
            traceback.print_exc()
        for text in (error, *getattr(error, "__notes__", ())):
            print(f"priml: {plain(text)}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("priml: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:  # the last line: whatever it is, no half-printed traceback
        if args.debug:
            raise
        reason = plain(f"{type(error).__name__}: {error}")
        print(f"priml: unexpected failure: {reason}\n(add --debug for the traceback)", file=sys.stderr)  # noqa: T201
        return 1


def run() -> int:
    """`main` as the installed command: the exit code holds even when a signal comes after the last word."""
    wait_briefly(os.environ)
    code = main()
    # On its way out the interpreter puts the default handlers back; a late Ctrl-C would end it by a signal instead.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


def wait_briefly(environ: MutableMapping[str, str]) -> None:
    """Threads of torch that wait for each other give their processor back soon, if the user has not said otherwise.

    By default they turn in a loop for milliseconds. Beside other programs that burns the time that the others of them
    wait for. libgomp reads this when it is loaded: before torch is imported.
    """
    if not environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environ["GOMP_SPINCOUNT"] = "1000"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Overrides may also stand behind options, which argparse alone does not see."""
    parser = _build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not ("overrides" in args and all("=" in text and text[0] != "-" for text in rest)):
        names = [text.lstrip("-").partition("=")[0].replace("-", "_") for text in rest if text.startswith("--")]
        hint = f"; settings are written {' '.join(f'{name}=VALUE' for name in names)}, without dashes"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint if names and 'overrides' in args else ''}")
    if rest:
        args.overrides += rest
    return args


class _Parser(argparse.ArgumentParser):
    """Errors in our own form: what was found, what was needed, and where to read on."""

    _required: Mapping[str, str] = MappingProxyType({})
    """Metavars of the arguments that must be given."""
    _commands: Mapping[str, argparse.ArgumentParser] = MappingProxyType({})

    def require(self, dest: str, metavar: str, text: str) -> None:
        """Add a positional argument that must be given."""
        self.add_argument(dest, metavar=metavar, nargs="?", help=text)
        self._required = {**self._required, dest: metavar}

    def add_commands(self, dest: str, metavar: str) -> argparse._SubParsersAction[Any]:
        """Add the commands of which one must be given."""
        commands = self.add_subparsers(dest=dest, metavar=metavar)
        self._required = {**self._required, dest: metavar}
        self._commands = commands.choices  # filled later
        return commands

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride] # it has overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse an unknown command, and a required argument that is not given."""
        given = list(sys.argv[1:] if args is None else args)
        name = next((text for text in given if not text.startswith("-")), None)
        if self._commands and name is not None and name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            self.error(f"found {name!r}, need one of {', '.join(self._commands)}{meant}")
        parsed, rest = super().parse_known_args(given, namespace or argparse.Namespace())
        for dest, metavar in self._required.items():
            if getattr(parsed, dest, None) is None:
                self.error(f"found no {metavar}, need one")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message}\nRead on with: {self.prog} --help\n")


def _build_parser() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = _Parser(
        prog="priml",
        description="PRIME for language models: reinforcement learning with implicit process rewards.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"priml {__version__}")
    top = parser.add_commands("command", "COMMAND")

    def add(name: str, run: Run, text: str, *, to: argparse._SubParsersAction[Any] = top) -> _Parser:
        sub = to.add_parser(name, help=text, description=text, parents=[common])
        sub.set_defaults(run=run)
        return sub

    def add_configured(
        name: str, run: Run, text: str, *, config: str = "a YAML file", to: argparse._SubParsersAction[Any] = top
    ) -> _Parser:
        sub = add(name, run, text, to=to)
        sub.usage = "%(prog)s [options] CONFIG [key=value ...]"
        sub.require("config", "CONFIG", config)
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, later wins")
        return sub

    resumable = "a YAML file, or a run folder"
    quickstart = add("quickstart", commands.quickstart, "The whole story on a laptop: SFT, PRIME, evaluation, report")
    quickstart.add_argument("--out", metavar="DIR", default="runs/quickstart", help="output folder (%(default)s)")
    quickstart.add_argument("--seed", type=int, default=0, help="seed of everything (%(default)s)")
    add_configured("sft", commands.sft, "Supervised warm start; resumes a run folder", config=resumable)
    text = "PRIME, or outcome-only RL with prm=null; resumes a run folder"
    add_configured("train", commands.train, text, config=resumable)
    text = (
        "Accuracy with confidence intervals; goes on with a run folder. `priml eval compare A B`: two of them, paired"
    )
    evaluation = add_configured("eval", commands.eval, text, config=resumable)
    evaluation.add_argument("--regrade", action="store_true", help="grade a run folder again, and sample nothing")
    text = "The implicit PRM by itself, without reinforcement learning"
    prm = top.add_parser("prm", help=text, description=text).add_commands("action", "ACTION")
    text = "Learn from labels of whole responses, or pairs; resumes a run folder"
    add_configured("train", commands.prm_train, text, config=resumable, to=prm)
    add_configured("score", commands.prm_score, "Rewards of tokens and steps for given responses", to=prm)
    add_configured("rank", commands.prm_rank, "Best-of-n and weighted majority vote", to=prm)
    add_configured("evaluate", commands.prm_evaluate, "ProcessBench and PRMBench", to=prm)
    text = "Training problems"
    data = top.add_parser("data", help=text, description=text).add_commands("action", "ACTION")
    text = "A training set from raw problems, stage by stage; goes on with a run folder"
    add_configured("prepare", commands.data_prepare, text, config=resumable, to=data)
    text = "Batch arithmetic, memory and time of a training run; loads no weights"
    plan.add_options(add_configured("plan", plan.run, text))
    _add_runs(top, add)
    _add_pages(add)
    text = "The verdict on each response of a file, with its reason and the layer that decided"
    verify = add("verify", commands.verify, text)
    verify.usage = "%(prog)s [options] FILE [key=value ...]"
    verify.add_argument("file", metavar="FILE", nargs="?", help="rows with a response and a gold, or tests")
    verify.add_argument("overrides", nargs="*", metavar="key=value", help="columns, limit, on_bad_row, verify")
    verify.add_argument("--explain", nargs=2, metavar=("RESPONSE", "GOLD"), help="explain one pair instead of a file")
    add("doctor", commands.doctor, "What is here, what is missing, and what to type")
    return parser


def _add_pages(add: Callable[..., _Parser]) -> None:
    """The commands that show a run as a page."""
    report = add("report", commands.report, "Write RUN_DIR/report.html, one self-contained page")
    report.require("run_dir", "RUN_DIR", "a run folder")
    text = "The same page on this machine with all rollouts, live while a run writes (needs the view extra)"
    view = add("view", commands.view, text)
    view.require("run_dir", "RUN_DIR", "a run folder")
    view.add_argument("--port", type=int, default=0, help="the port to listen on (a free one)")


def _add_runs(top: argparse._SubParsersAction[Any], add: Callable[..., _Parser]) -> None:
    """The commands on run folders."""
    text = "Which runs there are, and what became of them"
    runs = top.add_parser("runs", help=text, description=text).add_commands("action", "ACTION")
    listing = add("list", commands.runs_list, "The runs in a folder: state, step, accuracy", to=runs)
    listing.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="where to look (%(default)s)")
    listing.add_argument("--json", action="store_true", help="one JSON object per run")
    show = add("show", commands.runs_show, "One run: state, accuracy, settings that are not the defaults", to=runs)
    show.require("run_dir", "RUN_DIR", "a run folder")
    trial = add("try", commands.try_run, "The model before and after a run, side by side on the same prompts")
    trial.usage = "%(prog)s [options] RUN_DIR [PROMPT ...]"
    trial.require("run_dir", "RUN_DIR", "a finished run of priml train")
    trial.add_argument("prompts", nargs="*", metavar="PROMPT", help="questions; without any, held-out problems")


if __name__ == "__main__":
    sys.exit(run())
