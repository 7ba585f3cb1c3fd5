import json
import os
import signal
import subprocess
import sys
from errno import ENOSPC

import pytest

from priml.train.checkpoints import checkpoints, load_checkpoint, rewind, save_checkpoint


class Number:
    """The smallest thing with a state."""

    def __init__(self, value):
        self.value = value

    def save(self, folder):
        (folder / "number").write_text(str(self.value))

    def load(self, folder):
        self.value = int((folder / "number").read_text())


class Broken(Number):
    def save(self, folder):
        super().save(folder)
        raise OSError(ENOSPC, "No space left on device")


def test_parts_and_state_come_back(tmp_path):
    save_checkpoint(tmp_path, 12, {"a": Number(1), "b": Number(2)}, {"step": 12}, keep=2)
    a, b = Number(0), Number(0)
    (newest,) = checkpoints(tmp_path)
    assert newest.name == "000012"
    assert load_checkpoint(newest, {"a": a, "b": b}) == {"step": 12}
    assert (a.value, b.value) == (1, 2)


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, {"a": Number(step)}, {}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["000002", "000010"]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_and_spares_the_older_one(tmp_path):
    save_checkpoint(tmp_path, 1, {"a": Number(1)}, {}, keep=1)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"a": Number(2), "b": Broken(3)}, {}, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]


def test_a_process_killed_while_saving_leaves_no_half_checkpoint(tmp_path):
    program = f"""
import os, pathlib, signal
from priml.train.checkpoints import save_checkpoint
class Deadly:
    def save(self, folder):
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
save_checkpoint(pathlib.Path({str(tmp_path)!r}), 3, {{"a": Deadly()}}, {{}}, keep=2)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": "src"})
    assert killed.returncode == -signal.SIGKILL
    assert checkpoints(tmp_path) == []
    assert list((tmp_path / "checkpoints").iterdir()) != [], "the test killed it half-way"
    rewind(tmp_path, 0)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def records(folder, steps):
    for name in ("metrics", "spans"):
        lines = [json.dumps({"step": step}) for step in steps]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "cut o')
    for name, suffix in (("rollouts", "parquet"), ("evaluations", "json")):
        (folder / name).mkdir()
        for step in steps:
            (folder / name / f"{step:06d}.{suffix}").touch()
        (folder / name / f".000009.{suffix}.partial").touch()


def steps_on_disk(folder):
    logged = [[json.loads(line)["step"] for line in (folder / f"{n}.jsonl").open()] for n in ("metrics", "spans")]
    files = [sorted(int(p.stem) for p in (folder / n).iterdir()) for n in ("rollouts", "evaluations")]
    return logged + files


def test_rewinding_forgets_later_steps_everywhere(tmp_path):
    records(tmp_path, [0, 1, 2, 3])
    rewind(tmp_path, 2)
    assert steps_on_disk(tmp_path) == [[0, 1, 2]] * 4


def test_rewinding_to_the_start_forgets_the_evaluation_before_training_too(tmp_path):
    records(tmp_path, [0, 1])
    rewind(tmp_path, 0)
    assert steps_on_disk(tmp_path) == [[]] * 4


def test_rewinding_an_empty_folder_does_nothing(tmp_path):
    rewind(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
