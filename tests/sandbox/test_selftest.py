from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from priml.sandbox.child import UnsafeSubprocess
from priml.sandbox.pool import LocalSandbox
from priml.sandbox.selftest import probe


def test_every_attack_is_held_off_at_every_level(level: LocalSandbox):
    assert [found for found in probe(level) if found[1] is not None] == []


def test_without_isolation_the_attacks_succeed_so_they_are_real():
    breached = {name: breach for name, breach in probe(UnsafeSubprocess()) if breach is not None}
    assert {"files", "environment", "processes", "network", "fork bomb", "disk filling", "outliving"} <= set(breached)
    assert breached["files"] == "it wrote a file outside"
    assert not {"harmless program", "memory bomb", "time", "output"} & set(breached), "limits hold without isolation"


def test_what_the_attack_needed_outside_is_gone_when_its_process_is_killed():
    code = (
        "import contextlib, sys, time\nfrom priml.sandbox.selftest import Outside\n"
        "with contextlib.ExitStack() as stack:\n    print(Outside(stack).folder, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.kill()
    deadline = time.monotonic() + 120
    while folder.exists():
        assert time.monotonic() < deadline, "the folder was left"
        time.sleep(0.02)
