import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from priml import __version__
from priml.cli import commands
from priml.cli.main import wait_briefly
from priml.errors import Interrupted, RunError

REFUSED = "run_dir: r\npolicy: {model: m}\ndata: {train: {kind: chain}}\nsteps: x\n"


HEAVY = {"torch", "transformers", "pyarrow", "numpy", "pydantic"}


def imported_by(code: str, cwd: Path) -> set[str]:
    """The heavy packages that a program has imported at its end."""
    program = f"import sys\n{code}\nprint(*{HEAVY} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import priml", set()),
        ("from priml.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass", set()),
        ("from priml.cli.main import main\nassert main(['train', 'refused.yaml']) == 2", {"pydantic"}),
    ],
    ids=["import priml", "priml --help", "refused settings"],
)
def test_it_imports_no_more_than_it_needs(tmp_path: Path, code: str, needed: set[str]):
    (tmp_path / "refused.yaml").write_text(REFUSED)
    assert imported_by(code, tmp_path) <= needed


def test_every_command_is_in_the_help(priml):
    result = priml("--help")
    assert result.code == 0
    for command in ("quickstart", "sft", "train", "eval", "plan", "report", "doctor"):
        assert re.search(rf"^ +{command}\s", result.out, re.MULTILINE)
        assert f"usage: priml {command}" in priml(command, "--help").out


def test_the_version_is_told(priml):
    assert priml("--version").out == f"priml {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RunError("out of luck"), 1, "priml: out of luck\n"),
        (Interrupted("stopped after step 3"), 130, "priml: stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "priml: interrupted\n"),
        (ZeroDivisionError("by zero"), 1, "priml: unexpected failure: ZeroDivisionError: by zero\n"),
    ],
)
def test_a_failure_is_one_message_and_an_exit_code(
    priml, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
):
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(commands, "doctor", fail)
    result = priml("doctor")
    assert result.code == code
    assert result.err.startswith(said)
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback_of_a_refusal(priml):
    result = priml("train", "none.yaml", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("priml: none.yaml: cannot be read")


def test_train_eval_and_report_end_by_saying_where_things_are(priml, write, training):
    trained = priml("train", write("train.yaml", training))
    assert trained.code == 0, trained.err
    assert "before: greedy " in trained.out
    assert trained.out.endswith("model: run/model\nreport: priml report run\n")
    task = training["evaluate"]["data"]
    settings = {"run_dir": "eval", "model": "run/model", "data": {"chains": task}, "samples": 2, "max_new_tokens": 6}
    evaluated = priml("eval", write("eval.yaml", settings))
    assert evaluated.code == 0, evaluated.err
    assert evaluated.out.startswith("chains: greedy ")
    assert evaluated.out.endswith("written: eval/eval.json\n")
    assert priml("report", "run").out == "report: run/report.html\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_holds_when_a_signal_comes_while_the_interpreter_ends(tmp_path: Path, number: signal.Signals):
    program = f"""
import os, sys
from priml.cli.main import run

class Last:  # deleted after the interpreter has put the default signal handlers back
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {int(number)})

last = Last()
sys.argv = ["priml", "train", "refused.yaml"]
sys.exit(run())
"""
    (tmp_path / "refused.yaml").write_text(REFUSED)
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        ({"OMP_WAIT_POLICY": "active"}, None),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_NUM_THREADS": "2"}, "1000"),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(given: dict[str, str], spins: str | None):
    environ = dict(given)
    wait_briefly(environ)
    assert environ == given | ({"GOMP_SPINCOUNT": spins} if spins else {})


def test_the_installed_command_says_so_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch):
    code = """
import os, sys
from priml.cli.main import run
sys.argv = ["priml", "--version"]
try:
    run()
except SystemExit:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1000 False"
