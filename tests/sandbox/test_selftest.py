from __future__ import annotations

from priml.sandbox.pool import LocalSandbox
from priml.sandbox.selftest import probe
from priml.sandbox.unsafe import UnsafeSubprocess


def test_every_attack_is_held_off_at_every_level(level: LocalSandbox):
    assert [found for found in probe(level) if not found.holds] == []


def test_without_isolation_the_attacks_succeed_so_they_are_real():
    breached = {found.name: found.text for found in probe(UnsafeSubprocess()) if not found.holds}
    assert {"files", "environment", "processes", "network", "fork bomb", "disk filling", "outliving"} <= set(breached)
    assert breached["files"] == "it wrote a file outside"
    assert not {"harmless program", "memory bomb", "time", "output"} & set(breached), "limits hold without isolation"
