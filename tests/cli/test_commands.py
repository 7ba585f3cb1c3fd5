import argparse
import logging
from pathlib import Path

import pytest

from priml.cli.commands import print_line, sft, show_messages
from priml.errors import UsageError


def test_output_and_remarks_go_different_ways(capfd: pytest.CaptureFixture[str]):
    print_line("the result")
    show_messages()
    logging.getLogger("priml.somewhere").info("a remark")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("the result\n", "a remark\n")


def test_a_resumed_run_keeps_its_settings(tmp_path: Path):
    with pytest.raises(UsageError, match=r"found steps=3 beta=1, but a resumed run keeps its settings"):
        sft(argparse.Namespace(config=str(tmp_path), overrides=["steps=3", "beta=1"]))
