import json
import os
import signal
import subprocess
import sys
import threading
from errno import ENOSPC
from functools import partial

import pytest

from priml.errors import RankLostError, RunError, UsageError
from priml.runs.folder import RunFolder
from priml.training.checkpoints import CheckpointWriter, check_seal, load_checkpoint

JOIN_S = 60
"""Far more than anything here takes; reached only by a failure."""


class Number:
    """The smallest thing with a state."""

    def __init__(self, value):
        self.value = value

    def stage(self, folder):
        return [partial((folder / "number").write_text, str(self.value))]

    def load(self, folder):
        self.value = int((folder / "number").read_text())


class Failing(Number):
    """Its second file cannot be written."""

    def __init__(self, error):
        super().__init__(0)
        self._error = error

    def stage(self, folder):
        return [*super().stage(folder), self._fail]

    def _fail(self):
        raise self._error


class Slow(Number):
    """Begins to write, and goes on when it is told to."""

    def __init__(self, value):
        super().__init__(value)
        self.begun, self.may_go_on = threading.Event(), threading.Event()

    def stage(self, folder):
        return [self._dawdle, *super().stage(folder)]

    def _dawdle(self):
        self.begun.set()
        assert self.may_go_on.wait(JOIN_S)


def make_writer(folder, keep=2):
    return CheckpointWriter(RunFolder(folder), keep=keep, command="train")


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_parts_and_state_come_back(tmp_path):
    writer = make_writer(tmp_path)
    writer.begin(12, {"a": Number(1), "b": Number(2)}, {"step": 12})
    writer.wait()
    a, b = Number(0), Number(0)
    (newest,) = RunFolder(tmp_path).checkpoints()
    assert newest.name == "000012"
    assert load_checkpoint(newest, {"a": a, "b": b}) == {"step": 12}
    assert (a.value, b.value) == (1, 2)


def test_only_the_newest_are_kept(tmp_path):
    writer = make_writer(tmp_path)
    for step in (1, 2, 10):
        writer.begin(step, {"a": Number(step)}, {})
    writer.wait()
    assert names(tmp_path) == ["000002", "000010"]


def test_the_run_goes_on_while_files_are_written_and_what_they_hold_is_the_state_at_the_step(tmp_path):
    writer, part, state = make_writer(tmp_path), Slow(1), {"step": 1}
    writer.begin(1, {"a": part}, state)
    assert part.begun.wait(JOIN_S)
    part.value, state["step"] = 2, 2  # the next step, while the file of this one waits
    writer.check()
    assert names(tmp_path) == [".000001.partial"]
    part.may_go_on.set()
    writer.wait()
    assert names(tmp_path) == ["000001"]
    restored = Number(0)
    assert load_checkpoint(RunFolder(tmp_path).checkpoints()[0], {"a": restored}) == {"step": 1}
    assert restored.value == 1


def test_a_checkpoint_waits_for_the_one_before_it(tmp_path):
    writer, slow = make_writer(tmp_path), Slow(1)
    happened = []

    class Noting(Number):
        def stage(self, folder):
            happened.append(("staged", names(tmp_path)))
            return super().stage(folder)

    writer.begin(1, {"a": slow}, {})
    assert slow.begun.wait(JOIN_S)
    threading.Timer(0.2, slow.may_go_on.set).start()
    writer.begin(2, {"a": Noting(2)}, {})
    writer.wait()
    assert happened == [("staged", [".000002.partial", "000001"])]
    assert names(tmp_path) == ["000001", "000002"]


def test_the_same_checkpoint_twice_is_written_once(tmp_path):
    writer = make_writer(tmp_path)
    writer.begin(1, {"a": Number(1)}, {})
    writer.begin(1, {"a": Number(2)}, {})
    writer.wait()
    assert (tmp_path / "checkpoints" / "000001" / "a" / "number").read_text() == "1"


def failing(tmp_path, error):
    """A writer whose second checkpoint has failed."""
    writer = make_writer(tmp_path, keep=1)
    writer.begin(1, {"a": Number(1)}, {})
    writer.begin(2, {"a": Number(2), "b": Failing(error)}, {})
    while not writer._in_flight.done.done():
        pass
    return writer


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_spares_the_older_one(tmp_path):
    writer = failing(tmp_path, OSError(ENOSPC, "No space left on device"))
    assert names(tmp_path) == ["000001"]
    said = rf"{tmp_path}/checkpoints/000002: .*\(OSError: .*No space left.*go on with: priml train {tmp_path}$"
    with pytest.raises(RunError, match=said):
        writer.check()
    writer.check()
    writer.wait()  # once is enough


@pytest.mark.parametrize("asked", ["wait", "begin"])
def test_a_failure_is_told_at_the_latest_with_the_next_checkpoint(tmp_path, asked):
    writer = failing(tmp_path, PermissionError("read-only"))
    next_move = writer.wait if asked == "wait" else partial(writer.begin, 3, {"a": Number(3)}, {})
    with pytest.raises(RunError, match=r"PermissionError: read-only"):
        next_move()
    assert names(tmp_path) == ["000001"]


def test_a_lost_rank_is_told_as_such_so_that_the_run_can_begin_again(tmp_path):
    with pytest.raises(RankLostError, match=r"^rank 1 was lost$"):
        failing(tmp_path, RankLostError("rank 1 was lost")).wait()


def test_what_cannot_be_copied_aside_is_told_at_once_and_leaves_nothing(tmp_path):
    class Unstaged(Number):
        def stage(self, folder):
            raise MemoryError

    with pytest.raises(MemoryError):
        make_writer(tmp_path).begin(1, {"a": Number(1), "b": Unstaged(2)}, {})
    assert names(tmp_path) == []


def test_a_run_that_fails_finishes_the_checkpoint_in_flight_first(tmp_path):
    writer, slow = make_writer(tmp_path), Slow(1)
    writer.begin(1, {"a": slow}, {})
    threading.Timer(0.2, slow.may_go_on.set).start()
    with pytest.raises(ZeroDivisionError), writer.finishing():
        raise ZeroDivisionError
    assert names(tmp_path) == ["000001"]


def test_when_the_checkpoint_fails_too_both_are_told(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught, failing(tmp_path, PermissionError("read-only")).finishing():
        raise ZeroDivisionError
    (note,) = caught.value.__notes__
    assert "checkpoints/000002: this checkpoint could not be written (PermissionError: read-only)" in note


def test_a_run_that_is_stopped_at_once_waits_for_no_more_than_a_file(tmp_path):
    writer, slow = make_writer(tmp_path), Slow(1)
    writer.begin(1, {"a": slow}, {})
    assert slow.begun.wait(JOIN_S)
    with pytest.raises(KeyboardInterrupt), writer.finishing():
        raise KeyboardInterrupt
    assert names(tmp_path) == [".000001.partial"], "it did not wait"
    slow.may_go_on.set()
    with pytest.raises(RunError):
        writer.wait()
    assert names(tmp_path) == []


def test_the_interpreter_ends_with_the_right_code_while_files_are_written(tmp_path):
    program = f"""
import pathlib, sys, time, torch
from functools import partial
from safetensors.torch import save_file
from priml.runs.folder import RunFolder
from priml.training.checkpoints import CheckpointWriter
def write(path):
    time.sleep(0.001)  # with so many files there is always one to be written, whoever else is at work here
    save_file({{"a": torch.zeros(1000)}}, path)
class Many:
    def stage(self, folder):
        return [partial(write, folder / f"{{i}}.safetensors") for i in range(20_000)]
writer = CheckpointWriter(RunFolder(pathlib.Path({str(tmp_path)!r})), keep=2, command="train")
try:
    with writer.finishing():
        writer.begin(3, {{"a": Many()}}, {{}})
        raise KeyboardInterrupt
except KeyboardInterrupt:
    sys.exit(130)
"""
    ended = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": "src"}, timeout=JOIN_S)
    assert ended.returncode == 130
    assert names(tmp_path) == []


def test_a_process_killed_while_saving_leaves_no_half_checkpoint(tmp_path):
    program = f"""
import os, pathlib, signal
from priml.runs.folder import RunFolder
from priml.training.checkpoints import CheckpointWriter
class Deadly:
    def stage(self, folder):
        return [lambda: self.write(folder)]
    def write(self, folder):
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
writer = CheckpointWriter(RunFolder(pathlib.Path({str(tmp_path)!r})), keep=2, command="train")
writer.begin(3, {{"a": Deadly()}}, {{}})
writer.wait()
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": "src"})
    assert killed.returncode == -signal.SIGKILL
    assert RunFolder(tmp_path).checkpoints() == []
    assert names(tmp_path) == [".000003.partial"], "the test killed it half-way"
    RunFolder(tmp_path).rewind(0)
    assert names(tmp_path) == []


@pytest.fixture
def saved(tmp_path):
    """A run with checkpoints after steps 4 and 6."""
    folder = RunFolder(tmp_path)
    folder.manifest.write_text("{}")
    writer = make_writer(tmp_path)
    for step in (4, 6):
        writer.begin(step, {"policy": Number(step)}, {"step": step})
    writer.wait()
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit": (lambda newest: flip(newest / "policy" / "number"), r"policy/number: found sha256 \w{12}, need \w{12}"),
    "the state": (lambda newest: (newest / "state.json").write_text('{"step": 9}'), r"state\.json: found sha256"),
    "a missing file": (lambda newest: (newest / "policy" / "number").unlink(), "number: found sha256 absent, need"),
    "a new file": (lambda newest: (newest / "policy" / "more").write_text("x"), r"more: found sha256 \w+, need absent"),
    "no seal": (lambda newest: (newest / "seal.json").unlink(), r"found no seal\.json that can be read"),
    "half a seal": (
        lambda newest: (newest / "seal.json").write_text('{"run"'),
        r"found no seal\.json that can be read",
    ),
    "a list": (lambda newest: (newest / "seal.json").write_text("[]"), r"found no seal\.json that can be read"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_changed_checkpoint_is_refused_by_file_and_an_older_one_is_offered(saved, damage, message):
    older, newest = saved.checkpoints()
    damage(newest)
    with pytest.raises(UsageError, match=message + f".*priml train {saved} from=000004"):
        check_seal(newest, saved, command="train")
    check_seal(older, saved, command="train")


def test_a_checkpoint_of_another_run_is_refused(saved):
    saved.manifest.write_text('{"seed": 1}')
    with pytest.raises(UsageError, match="found a checkpoint of another run"):
        check_seal(saved.checkpoints()[0], saved, command="train")


def test_other_roles_than_the_runs_are_refused(saved):
    with pytest.raises(UsageError, match="found the state of policy, need that of critic, policy"):
        load_checkpoint(saved.checkpoints()[0], {"policy": Number(0), "critic": Number(0)})
    policy = Number(0)
    assert load_checkpoint(saved.checkpoints()[0], {"policy": policy}) == json.loads('{"step": 4}')
    assert policy.value == 4
