import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fakes import read_metrics
from priml.batch import Row
from priml.errors import Interrupted, NonFiniteError, PausedError
from priml.runs.folder import RunFolder
from priml.trackers.base import JsonlTracker
from priml.training.interrupt import Interruption
from priml.training.run import Run, Schedule
from priml.training.supervised import DataSchedule, HeldOut, train_supervised

COURSE = DataSchedule(examples=5, epochs=2, batch=2, warmup=0.5, seed=0)


class Learner:
    """Its whole state is the sum of what it saw; on a chosen step it does what it is told first."""

    def __init__(self, on_step=None, act=None):
        self.total = 0.0
        self.seen, self.scales = [], []
        self._on_step, self._act = on_step, act

    def update(self, batch, *, lr_scale):
        if batch.step == self._on_step:
            self._act()
        self.seen.append(batch.tokens_BL[:, 1].tolist())
        self.scales.append(lr_scale)
        self.total += sum(self.seen[-1]) * lr_scale
        return SimpleNamespace(metrics=lambda: {"fake/total": self.total})

    def stage(self, folder):
        return [partial((folder / "total").write_text, repr(self.total))]

    def load(self, folder):
        self.total = float((folder / "total").read_text())

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "total").write_text(repr(self.total))


UNITS = [[Row((1,), (10 + i, 3), 0.0, i, ())] for i in range(5)]


def a_run(folder, learner, *, every=None, interruption=None, steps=COURSE.steps, max_hours=None):
    return Run(
        RunFolder(folder),
        command="sft",
        roles={"model": learner},
        schedule=Schedule(steps, every, 2, max_hours=max_hours),
        trackers=[JsonlTracker(folder / "metrics.jsonl")],
        interruption=interruption or Interruption("."),
    )


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own():
    assert COURSE.steps == 6, "the last step of an epoch is smaller, and counts"
    epochs = [[i for step in steps for i in COURSE.examples_in(step)] for steps in ((1, 2, 3), (4, 5, 6))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [0, 1, 2, 3, 4]
    assert epochs[0] != epochs[1]
    assert [len(COURSE.examples_in(step)) for step in range(1, 7)] == [2, 2, 1, 2, 2, 1]


def test_the_order_follows_from_the_seed():
    schedule = [
        DataSchedule(examples=50, epochs=1, batch=50, warmup=0.0, seed=seed).examples_in(1) for seed in (0, 0, 1)
    ]
    assert schedule[0] == schedule[1] != schedule[2]


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    schedule = DataSchedule(examples=10, epochs=1, batch=1, warmup=0.2, seed=0)
    scales = [schedule.lr_scale(step) for step in range(1, 11)]
    assert scales[:2] == [0.5, 1.0]
    assert np.all(np.diff(scales[1:]) < 0)
    assert scales[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 9)))
    assert scales[-1] > 0, "the last step is not wasted"
    assert DataSchedule(examples=1, epochs=1, batch=1, warmup=0.0, seed=0).lr_scale(1) == 1.0


def test_the_course_reaches_the_learner_and_every_step_is_recorded(tmp_path):
    learner = Learner()
    train_supervised(learner, COURSE, UNITS, a_run(tmp_path, learner))
    assert learner.seen == [[10 + i for i in COURSE.examples_in(step)] for step in range(1, 7)]
    assert learner.scales == [COURSE.lr_scale(step) for step in range(1, 7)]
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["tokens/trained"] for r in records] == [4, 4, 2, 4, 4, 2]
    assert records[-1]["fake/total"] == learner.total
    assert records[-1]["time/step"] > 0


def test_checkpoints_come_by_schedule_and_after_the_last_step(tmp_path):
    learner = Learner()
    train_supervised(learner, COURSE, UNITS, a_run(tmp_path, learner, every=4))
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["000004", "000006"]


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_an_interrupted_course_goes_on_as_if_nothing_had_happened(tmp_path, stopped):
    whole = Learner()
    (tmp_path / "whole").mkdir()
    train_supervised(whole, COURSE, UNITS, a_run(tmp_path / "whole", whole))

    interruption = Interruption(".")
    first = Learner(on_step=stopped, act=lambda: setattr(interruption, "requested", True))
    with pytest.raises(Interrupted, match=f"after step {stopped} of 6; go on with: priml sft {tmp_path}"):
        train_supervised(first, COURSE, UNITS, a_run(tmp_path, first, interruption=interruption))
    second = Learner()
    run = a_run(tmp_path, second)
    run.resume(RunFolder(tmp_path).checkpoints()[-1])
    assert run.completed == stopped
    train_supervised(second, COURSE, UNITS, run)
    run.finish({"seed": 0})

    assert second.total == whole.total
    assert first.seen + second.seen == whole.seen
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["tokens"], summary["seed"]) == (6, {"trained": 20}, 0)
    assert (tmp_path / "model" / "total").read_text() == repr(whole.total)


def test_a_run_whose_time_is_up_saves_itself_and_ends_well_and_each_process_does_a_step(tmp_path):
    whole, seen = Learner(), []
    (tmp_path / "whole").mkdir()
    train_supervised(whole, COURSE, UNITS, a_run(tmp_path / "whole", whole))
    for step in range(1, 6):
        learner = Learner()
        run = a_run(tmp_path, learner, max_hours=1e-9)
        if step > 1:
            run.resume(RunFolder(tmp_path).checkpoints()[-1])
        up = f"max_hours: 1e-09 hours are up after step {step} of 6; go on with: priml sft {tmp_path}"
        with pytest.raises(PausedError, match=up) as caught:
            train_supervised(learner, COURSE, UNITS, run)
        assert caught.value.exit_code == 0
        seen += learner.seen
    last = Learner()
    run = a_run(tmp_path, last, max_hours=1.0)
    run.resume(RunFolder(tmp_path).checkpoints()[-1])
    train_supervised(last, COURSE, UNITS, run)
    assert (last.total, seen + last.seen) == (whole.total, whole.seen)


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    interruption = Interruption(".")
    interruption.requested = True
    with pytest.raises(Interrupted, match="after step 0 of 6; go on with"):
        train_supervised(Learner(), COURSE, UNITS, a_run(tmp_path, Learner(), interruption=interruption))
    assert RunFolder(tmp_path).checkpoints() == []


def test_a_failed_step_leaves_its_batch_and_no_record(tmp_path):
    def explode():
        error = NonFiniteError("loss is nan")
        error.tensors = {"tokens": torch.arange(3)}
        raise error

    learner = Learner(on_step=2, act=explode)
    run = a_run(tmp_path, learner)
    with pytest.raises(NonFiniteError) as caught:
        train_supervised(learner, COURSE, UNITS, run)
    path = run.save_failure(caught.value)
    assert path == tmp_path / "failed" / "000002.safetensors"
    assert load_file(path)["tokens"].tolist() == [0, 1, 2]
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]


def row(token, group, outcome=1.0):
    return Row([1], [token], outcome=outcome, group=group, step_ends=())


def test_units_go_into_a_batch_whole_and_in_the_order_of_the_schedule(tmp_path):
    class Noting(Learner):
        def update(self, batch, *, lr_scale):
            self.batch = batch
            return super().update(batch, lr_scale=lr_scale)

    units = [[row(5, 0), row(6, 0, 0.0)], [row(7, 1)], [row(8, 2), row(9, 2, 0.0)]]
    schedule = SimpleNamespace(examples_in=lambda step: [2, 0], lr_scale=lambda step: 1.0)
    learner = Noting()
    train_supervised(learner, schedule, units, a_run(tmp_path, learner, steps=1))
    assert learner.batch.step == 1
    assert learner.batch.tokens_BL[:, 1].tolist() == [8, 9, 5, 6]
    assert learner.batch.groups_B.tolist() == [2, 2, 0, 0]
    assert learner.batch.outcomes_B.tolist() == [1, 0, 1, 0]


def evaluated_steps(every):
    held_out = HeldOut(lambda: {"auc": 0.5}, every, steps=5)
    return [step for step in range(1, 6) if held_out.metrics(step)]


def test_held_out_evaluations_come_when_they_are_due_and_after_the_last_step():
    assert evaluated_steps(2) == [2, 4, 5]
    assert evaluated_steps(None) == [5]


def test_shares_and_other_numbers_have_names_of_their_own():
    metrics = HeldOut(lambda: {"auc": 0.5, "reward_mean": 1.0, "accuracy": 0.1}, 1, steps=5).metrics(1)
    assert metrics.pop("time/evaluate") >= 0
    assert metrics == {"eval/auc": 0.5, "eval/accuracy": 0.1, "held_out/reward_mean": 1.0}


def test_held_out_numbers_are_recorded_with_those_of_the_step(tmp_path):
    learner = Learner()
    train_supervised(learner, COURSE, UNITS, a_run(tmp_path, learner), HeldOut(lambda: {"auc": 0.5}, 4, COURSE.steps))
    assert [r["step"] for r in read_metrics(tmp_path) if "eval/auc" in r] == [4, 6]
