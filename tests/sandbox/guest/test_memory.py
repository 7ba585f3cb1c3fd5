"""A program's memory limit holds for all its processes together."""

from __future__ import annotations

import pytest

from priml.sandbox import Limits, ProgramEnded, Sandbox
from priml.sandbox.child import UnsafeSubprocess

LIMITS = Limits(wall_s=60.0, memory_mib=128, processes=20)
SIXTEEN_JUST_UNDER_THE_LIMIT = """
import os, time
for _ in range(16):
    if os.fork() == 0:
        block = bytearray(b"x") * (100 << 20)
        time.sleep(50)
        os._exit(0)
"""


def test_sixteen_children_just_under_the_limit_are_ended_together(level: Sandbox):
    code = SIXTEEN_JUST_UNDER_THE_LIMIT + "for _ in range(16): os.wait()\nprint('ALL')"
    result = level.run(code, limits=LIMITS)
    if "BlockingIOError" in result.stderr or "PermissionError" in result.stderr:
        return  # no program has a second process at this level
    assert (result.status, result.stdout) == ("memory limit", "")


def test_the_limit_holds_without_isolation_too():
    code = SIXTEEN_JUST_UNDER_THE_LIMIT + "for _ in range(16): os.wait()\nprint('ALL')"
    assert UnsafeSubprocess().run(code, limits=LIMITS).status == "memory limit"


def test_children_of_a_session_are_watched_between_its_replies(strongest: Sandbox):
    code = SIXTEEN_JUST_UNDER_THE_LIMIT + "receive(); reply(b'')\nfor _ in range(16): os.wait()\nreceive()"
    with strongest.open(code, limits=LIMITS) as session, pytest.raises(ProgramEnded) as ended:
        [session.ask(b"") for _ in range(2)]
    assert ended.value.result.status == "memory limit"


def test_pages_that_children_share_count_once(strongest: Sandbox):
    code = """
import os, time
block = bytearray(b"x") * (80 << 20)
for _ in range(8):
    if os.fork() == 0:
        assert block[-1] == ord("x")
        time.sleep(1)
        os._exit(0)
print([os.wait()[1] for _ in range(8)])
"""
    assert strongest.run(code, limits=LIMITS).stdout == f"{[0] * 8}\n"
