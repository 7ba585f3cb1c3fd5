import logging
from pathlib import Path

import pytest

from priml.cli.output import print_line, refuse_overrides, show_messages
from priml.errors import UsageError


def test_output_and_remarks_go_different_ways(capfd: pytest.CaptureFixture[str]):
    print_line("the result")
    show_messages()
    logging.getLogger("priml.somewhere").info("a remark")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("the result\n", "a remark\n")


def test_a_resumed_run_keeps_its_settings():
    refuse_overrides(Path("runs/a"), [])
    with pytest.raises(UsageError, match=r"runs/a: a resumed run keeps its settings; drop steps=3 beta=1"):
        refuse_overrides(Path("runs/a"), ["steps=3", "beta=1"])
