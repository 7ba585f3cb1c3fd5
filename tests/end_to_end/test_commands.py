"""Real processes: signals, a full disk, and what they leave behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes import read_metrics, timeless, tiny_config
from priml.commands.sft import run_sft
from priml.commands.train import run_training
from priml.config.load import dump_config
from priml.errors import UsageError
from priml.runs import owner
from priml.runs.folder import RunFolder

PRIML = [sys.executable, "-m", "priml.cli.main"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PATIENCE_S = 300
"""Reached only by a failure, however busy the machine."""


def start(cfg) -> subprocess.Popen:
    """`priml train` in a process of its own; a math verifier and its workers included."""
    path = cfg.run_dir.parent / "full.yaml"
    path.write_text(dump_config(cfg))
    # A shell in the background ignores SIGINT for its children; a terminal does not.
    return subprocess.Popen(
        [*PRIML, "train", str(path)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_steps(process: subprocess.Popen, run_dir: Path, count: int) -> None:
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run is not getting anywhere"
        time.sleep(0.02)


def child_pids(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in threads for child in children.read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "worker processes survived"
        time.sleep(0.05)


SLOW_JUDGE = """
import time
from pathlib import Path
from priml.graders.math.verifier import MathVerifier
from priml.types import Problem
verifier = MathVerifier(workers=1)

def grade(problem, response):
    time.sleep(1.0 if Path({hold!r}).exists() else {pause})
    verifier.compare("\\\\boxed{{f(x)+1}}", "1+f(x)")  # starts the workers
    return response[:1] in ("0", "2")
"""


HANGING_JUDGE = """
import time
from pathlib import Path

def grade(problem, response):
    if Path({hold!r}).exists():
        time.sleep(3600)
    return response[:1] in ("0", "2")
"""


def slow_config(tmp_path, warm_model, *, pause, steps=500):
    """While `tmp_path / "hold"` exists, no step of the run can end for seconds."""
    cfg = tiny_config(tmp_path, warm_model, f"steps={steps}", "checkpoint.every=null")
    (tmp_path / "judge.py").write_text(SLOW_JUDGE.format(pause=pause, hold=str(tmp_path / "hold")))
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_step_saves_a_checkpoint_and_the_run_can_go_on(tmp_path, warm_model, number, monkeypatch):
    cfg = slow_config(tmp_path, warm_model, pause=0.002)
    process = start(cfg)
    wait_for_steps(process, cfg.run_dir, 2)
    workers = child_pids(process.pid)
    assert workers, "the verifier's workers are running"
    monkeypatch.setattr(owner, "WAIT_S", 0.1)
    with pytest.raises(UsageError, match=rf"a run in progress in this folder \(process {process.pid} on "):
        run_training(cfg.run_dir)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    completed = read_metrics(cfg.run_dir)[-1]["step"]
    assert f"{number.name}: ending this step, then saving a checkpoint." in errors
    assert f"priml: interrupted after step {completed} of {cfg.steps}; go on with: priml train {cfg.run_dir}" in errors
    assert "Traceback" not in errors
    assert [int(path.name) for path in RunFolder(cfg.run_dir).checkpoints()] == [completed]
    wait_until_gone(workers)

    config = cfg.run_dir / "config.yaml"  # a shorter rest, judged faster and alike
    config.write_text(config.read_text().replace("steps: 500", f"steps: {completed + 1}"))
    whole = tiny_config(tmp_path / "whole", warm_model, f"steps={completed + 1}")
    run_training(cfg.run_dir)
    run_training(whole)
    strip = [{k: v for k, v in r.items() if "digest" not in k} for r in timeless(read_metrics(cfg.run_dir))]
    assert strip == [{k: v for k, v in r.items() if "digest" not in k} for r in timeless(read_metrics(whole.run_dir))]
    for name in ("model", "prm"):
        weights = [(run / name / "model.safetensors").read_bytes() for run in (cfg.run_dir, whole.run_dir)]
        assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_signal_does_not_wait_for_a_verifier_that_hangs_and_the_last_step_is_kept(tmp_path, warm_model):
    cfg = tiny_config(tmp_path, warm_model, "steps=500", "checkpoint.every=null")
    (tmp_path / "judge.py").write_text(HANGING_JUDGE.format(hold=str(tmp_path / "hold")))
    process = start(cfg)
    wait_for_steps(process, cfg.run_dir, 2)
    (tmp_path / "hold").touch()
    time.sleep(3)  # by now a call hangs, for an hour
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    completed = read_metrics(cfg.run_dir)[-1]["step"]
    assert process.returncode == 130, errors
    assert f"priml: interrupted after step {completed} of 500; go on with: priml train {cfg.run_dir}" in errors
    assert [int(path.name) for path in RunFolder(cfg.run_dir).checkpoints()] == [completed]


@pytest.mark.slow
def test_workers_do_not_survive_a_killed_trainer(tmp_path, warm_model):
    cfg = slow_config(tmp_path, warm_model, pause=0.002)
    process = start(cfg)
    wait_for_steps(process, cfg.run_dir, 1)
    workers = child_pids(process.pid)
    assert workers
    process.kill()
    process.communicate()
    wait_until_gone(workers)


STUCK = """
import sys, time
from pathlib import Path
from priml.cli.main import run
from priml.models import checkpoint

save_file = checkpoint.save_file

def stuck(tensors, path):
    while ".000004.partial" in str(path):
        time.sleep(0.01)
    save_file(tensors, path)

checkpoint.save_file = stuck
sys.exit(run())
"""


@pytest.mark.slow
def test_a_run_killed_with_a_checkpoint_on_its_way_goes_on_from_the_one_before_it(tmp_path, warm_model, said):
    settings = ("steps=6", "checkpoint={every: 2, keep: 9}")
    cfg = tiny_config(tmp_path / "killed", warm_model, *settings)
    path = tmp_path / "train.yaml"
    path.write_text(dump_config(cfg))
    program = [sys.executable, "-c", STUCK, "train", str(path)]
    process = subprocess.Popen(program, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_steps(process, cfg.run_dir, 6)  # training went on while the fourth step's checkpoint was stuck
    process.kill()
    process.communicate()
    assert sorted(path.name for path in (cfg.run_dir / "checkpoints").iterdir()) == [".000004.partial", "000002"]

    run_training(cfg.run_dir)
    assert "resuming after step 2 of 6" in said
    whole = tiny_config(tmp_path / "whole", warm_model, *settings)
    run_training(whole)
    assert timeless(read_metrics(cfg.run_dir)) == timeless(read_metrics(whole.run_dir))
    for name in ("model/model.safetensors", "prm/model.safetensors", "checkpoints/000006/policy/optimizer.safetensors"):
        assert (cfg.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()
    assert sorted(path.name for path in (cfg.run_dir / "checkpoints").iterdir()) == ["000002", "000004", "000006"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return probe.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces: a small file system of its own is mounted")
@pytest.mark.slow  # the first proof: tests/commands/test_session.py and tests/training/test_checkpoints.py
@pytest.mark.parametrize(("kib", "from_where"), [(600, "from checkpoint 0"), (120, "from the start")])
def test_a_full_disk_stops_the_run_with_a_message_and_leaves_it_resumable(tmp_path, warm_model, kib, from_where):
    place = tmp_path / "disk"
    place.mkdir()
    rescued = tmp_path / "rescued"
    cfg = tiny_config(
        tmp_path, warm_model, "steps=400", "checkpoint.every=1", "checkpoint.keep=50", f"run_dir={place / 'run'}"
    )
    path = tmp_path / "full.yaml"
    path.write_text(dump_config(cfg))
    script = (
        f"mount -t tmpfs -o size={kib}k none {place} && {' '.join(PRIML)} train {path}; code=$?; "
        f"cp -r {place}/run {rescued}; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"priml: {place / 'run'}: no space left on the disk" in done.stderr
    assert f"make room, then go on with: priml train {place / 'run'} ({from_where}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((rescued / "checkpoints").glob(".*"))
    completed = [int(found.name) for found in RunFolder(rescued).checkpoints()]
    config = rescued / "config.yaml"
    config.write_text(config.read_text().replace("steps: 400", f"steps: {max(completed, default=0) + 1}"))
    summary = run_training(rescued)
    assert summary["steps"] == max(completed, default=0) + 1


SFT = """
run_dir: {run_dir}
model: {{kind: tiny, width: 16, layers: 1, heads: 2}}
data: {{kind: walk, length: 2, states: 4, operations: 5, count: 60}}
epochs: 400
batch: 60
checkpoint: {{every: 2, keep: 100}}
backend: {{device: cpu}}
"""


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces: a small file system of its own is mounted")
@pytest.mark.slow
def test_a_full_disk_stops_a_warm_start_which_is_resumed_elsewhere(tmp_path):
    place, rescued, path = tmp_path / "disk", tmp_path / "rescued", tmp_path / "sft.yaml"
    place.mkdir()
    path.write_text(SFT.format(run_dir=place / "run"))
    script = (
        f"mount -t tmpfs -o size=800k none {place} && {' '.join(PRIML)} sft {path}; code=$?; "
        f"cp -r {place}/run {rescued}; exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    completed = int(RunFolder(rescued).checkpoints()[-1].name)
    assert f"priml: {place / 'run'}: no space left on the disk" in done.stderr
    assert f"go on with: priml sft {place / 'run'} (from checkpoint {completed:06d})" in done.stderr
    assert "Traceback" not in done.stderr
    config = rescued / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 400", f"epochs: {completed + 1}"))
    assert (run_sft(rescued) / "model.safetensors").is_file()
    assert read_metrics(rescued)[-1]["step"] == completed + 1
