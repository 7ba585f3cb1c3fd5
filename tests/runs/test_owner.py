import os
import signal
import subprocess
import sys

import pytest

from priml.errors import UsageError
from priml.runs import owner
from priml.runs.folder import RunFolder
from priml.runs.owner import owned

OWNER = """
import sys, time
from pathlib import Path
from priml.runs.folder import RunFolder
from priml.runs.owner import owned
with owned(RunFolder(Path(sys.argv[1]))):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_with_its_owner_and_is_free_when_the_owner_is_killed(tmp_path, other, monkeypatch):
    monkeypatch.setattr(owner, "WAIT_S", 0.1)
    folder = RunFolder(tmp_path)
    with (
        pytest.raises(UsageError, match=rf"a run in progress in this folder \(process {other.pid} on ."),
        owned(folder),
    ):
        pytest.fail("it has an owner")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with owned(folder):
        assert (tmp_path / ".owner.json").exists()


def test_it_is_given_back_whatever_ends_the_work_inside(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), owned(RunFolder(tmp_path)):
            raise ValueError("inside")
    assert not (tmp_path / ".owner.json").exists()


def test_where_files_cannot_be_locked_the_run_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    def refuse(self, *args, **kwargs):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(owner.FileLock, "acquire", refuse)
    with caplog.at_level("INFO", logger="priml"), owned(RunFolder(tmp_path)):
        pass
    assert "no locks (no locks here)" in caplog.text
