"""A phase that hangs is named and ended; one that gets on is left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from priml.errors import RunError
from priml.training.watchdog import beat, keep_stacks_in, watched


@pytest.fixture(autouse=True)
def _as_a_command_takes_signals() -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, previous)


def hang_here() -> None:
    while True:
        time.sleep(0.01)


def test_the_phase_that_hangs_is_named_its_stacks_are_kept_and_what_runs_is_ended(tmp_path: Path):
    def work() -> None:
        with watched(0.2, stop_within_s=600, next_move=lambda: "go on with: priml train r"):
            keep_stacks_in(tmp_path)
            beat("policy")
            hang_here()

    with pytest.raises(
        RunError, match=r"phase 'policy' has not got on for 0.2 s.*stacks.txt; go on with: priml train r"
    ):
        work()
    stacks = (tmp_path / "stacks.txt").read_text()
    assert stacks.startswith("phase policy\n")
    assert "in hang_here" in stacks


def test_a_run_whose_phases_get_on_is_left_alone_and_so_is_one_that_nobody_watches():
    with watched(600, stop_within_s=600, next_move=str):
        for _ in range(100):
            beat("sample")
    with watched(None, stop_within_s=600, next_move=str):
        beat("sample")
    with pytest.raises(KeyError), watched(600, stop_within_s=600, next_move=str):
        raise KeyError  # an error of another kind goes on its way


def test_code_that_lets_no_other_thread_run_is_ended_too():
    code = (
        "import re\nfrom priml.training import watchdog\nwatchdog._LAST_S = 0.1\n"
        "with watchdog.watched(0.2, stop_within_s=0.1, next_move=str):\n    re.match('(a+)+$', 'a' * 60 + 'b')"
    )
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=600)
    assert ended.returncode == 1
    assert ", line 5 in <module>" in ended.stderr
