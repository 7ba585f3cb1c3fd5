import os
import subprocess
import sys

import pytest

from priml.cli.output import LenientStream, plain

PROGRAM = """
import sys
from priml.cli.output import LenientStream, plain
sys.stdout = LenientStream(sys.stdout, forgives={forgives})
for i in range(20000):
    print("line", i, flush=i % 100 == 0)
open(sys.argv[1], "w").write("the end")
"""


def run(tmp_path, forgives, stdout):
    command = [sys.executable, "-c", PROGRAM.format(forgives=forgives), str(tmp_path / "end")]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_program_whose_reader_goes_away_ends_as_it_would_have(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = run(tmp_path, "BrokenPipeError", writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "end").read_text() == "the end"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(("forgives", "code"), [("OSError", 0), ("BrokenPipeError", 1)])
def test_a_full_disk_is_forgiven_only_where_that_is_asked_for(tmp_path, forgives, code):
    with open("/dev/full", "w") as full:
        done = run(tmp_path, forgives, full)
    assert (tmp_path / "end").exists() is (code == 0)
    assert ("No space left" in done.stderr) is (code != 0)


def test_all_else_is_the_stream_itself(capsys):
    stream = LenientStream(sys.stdout, forgives=OSError)
    print("as ever", file=stream, flush=True)
    assert capsys.readouterr().out == "as ever\n"
    assert stream.isatty() is sys.stdout.isatty()


def test_what_a_terminal_obeys_is_shown_as_its_code(priml, write, training):
    assert plain("a\x1b[2J\x07\r\u202eb\ud800\x9b\u200b é 数\n  next") == (
        "a\\x1b[2J\\x07\\r\\u202eb\\ud800\\x9b\\u200b é 数\n  next"
    )
    training["policy"]["model"] = "no\x1b[31mmodel\u202e"
    result = priml("train", write("c.yaml", training))
    assert result.code == 2
    assert "no\\x1b[31mmodel\\u202e" in result.err
    assert plain(result.err) == result.err
