from __future__ import annotations

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
