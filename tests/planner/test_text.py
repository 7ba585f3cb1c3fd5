from __future__ import annotations

from typing import Any

import pytest

from priml.planner.machine import PRESETS, Machine
from priml.planner.plan import make_plan
from priml.planner.text import WIDTH, write_plan


@pytest.mark.parametrize(
    "machine", [Machine(PRESETS["h100"]), Machine(PRESETS["h100"], 8), Machine(PRESETS["a100"], 8, 4)]
)
def test_the_page_fits_its_width_and_says_everything(make_job: Any, machine: Machine):
    plan = make_plan(make_job(machine=machine))
    text = write_plan(plan, source="train.yaml")
    assert max(map(len, text.splitlines())) <= WIDTH
    for title in (
        "machine and models",
        "one step",
        "rounded and dropped",
        "memory of",
        "time of a step",
        "change first",
    ):
        assert title in text
    for phase in plan.memory.phases:
        assert phase.name in text
    for span in plan.time.spans:
        assert span.name in text
    assert ("DOES NOT FIT" in text) == (not plan.memory.fits)
    first = [line for line in text.splitlines() if line.startswith("- ")][:3]
    assert first[0].startswith("- fits: " if plan.memory.fits else "- DOES NOT FIT: ")
    assert " s a step, " in first[1]
    assert first[2].startswith("- change first: ")
    assert "256 + 171 = 427 prompts x 4 responses = 1,708 responses" in text
    assert "REFUSED" not in text
    assert "\x1b" not in text


def test_refusals_have_a_section_of_their_own(make_job: Any):
    text = write_plan(make_plan(make_job(machine=Machine(PRESETS["h100"], 8, 64))), source="x")
    assert "REFUSED" in text
    assert "leaves 256 of 512 devices without a row" in " ".join(text.split())


def test_a_terminal_gets_colours(make_job: Any):
    assert "\x1b[" in write_plan(make_plan(make_job()), source="x", color=True)
