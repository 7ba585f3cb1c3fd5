import json
import os
import signal
import threading
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fakes import make_group, read_metrics, read_rollouts, timeless
from priml.batch import TokenScores
from priml.config.alarms import NO_ALARMS, AccuracyAlarm, EntropyAlarm
from priml.config.algorithm import Gate
from priml.errors import AlarmError, Interrupted, NonFiniteError, RunError
from priml.learners.base import PolicyReport, PrmReport
from priml.runs.folder import RunFolder
from priml.trackers.base import JsonlTracker
from priml.training.alarms import Alarms
from priml.training.collect import GroupPool, collate_groups
from priml.training.gate import TrustGate
from priml.training.interrupt import Interruption, StepAborted
from priml.training.online_run import Monitors, OnlineRun
from priml.training.records import FinishedStep, LocalRecords
from priml.training.run import Schedule
from priml.training.timing import Clock


class Model:
    """A role whose whole state is one number."""

    def __init__(self):
        self.value = 0

    def digest(self):
        return f"{self.value:064d}"

    def stage(self, folder):
        return [partial((folder / "value").write_text, str(self.value))]

    def load(self, folder):
        self.value = int((folder / "value").read_text())

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "model").write_text(str(self.value))


class Stream:
    def __init__(self):
        self.position = 0

    def state(self):
        return {"position": self.position}

    def load(self, state):
        self.position = state["position"]


def ends(ids):
    return [len(ids) - 1]


class Fixture:
    """A run around two fake models, driven by hand."""

    def __init__(self, folder, *, steps=4, evaluate=None, alarms=None, gate=None, **schedule):
        folder.mkdir(exist_ok=True)
        self.policy, self.prm, self.stream = Model(), Model(), Stream()
        self.interruption = Interruption(".")
        chosen = {"evaluate_every": None, "checkpoint_every": 2, "keep_checkpoints": 5, **schedule}
        self.run = OnlineRun(
            RunFolder(folder),
            roles={"policy": self.policy, "prm": self.prm},
            stream=self.stream,
            schedule=Schedule(steps=steps, **chosen),
            monitors=Monitors(
                LocalRecords(ends),
                Clock(),
                evaluate=evaluate,
                alarms=alarms or Alarms(NO_ALARMS),
                gate=TrustGate(gate),
            ),
            trackers=[JsonlTracker(folder / "metrics.jsonl")],
            interruption=self.interruption,
        )

    def do(self, step, entropy=0.3):
        """One step of pretended training."""
        self.stream.position += 10
        pool = GroupPool(wanted=1, band=None, max_rounds=1)
        pool.add([make_group([1.0, 0.0])])
        batch = collate_groups(pool.kept, step, step_ends=ends)
        zeros_BT = torch.zeros(batch.mask_BT.shape)
        self.policy.value += 1
        report = PolicyReport(0.1, 0.2, entropy, 0.4, 0.5, 0.6)
        batch = batch.with_old(TokenScores(zeros_BT, zeros_BT))
        self.run.record(FinishedStep(step, pool.groups, batch, None, zeros_BT), None, report)

    def do_all(self):
        for step in self.run.steps():
            self.do(step)


def test_a_step_leaves_one_record_one_rollout_file_and_checkpoints_when_due(tmp_path):
    made = Fixture(tmp_path, steps=5)
    made.do_all()
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in records if "digest/policy" in r] == [2, 4, 5]
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["000002", "000004", "000005"]
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == [f"{i:06d}.parquet" for i in range(1, 6)]
    assert [row["outcome"] for row in read_rollouts(tmp_path, 3)] == [1.0, 0.0]
    assert not any(name.startswith("prm/") for name in records[0])


def test_it_goes_on_from_a_checkpoint(tmp_path):
    Fixture(tmp_path).do_all()
    again = Fixture(tmp_path, steps=6)
    again.run.resume(RunFolder(tmp_path).checkpoints()[0])
    assert (again.run.completed, again.policy.value, again.stream.position) == (2, 2, 20)
    assert next(again.run.steps()) == 3


def test_an_evaluation_that_a_signal_ends_is_made_up_for_when_the_run_goes_on(tmp_path):
    def tenths(step, is_end):
        return {"greedy": {"mean": step / 10, "low": 0.0, "high": 1.0}}

    def evaluate(step, is_end):
        if step == 1 and not made.interruption.requested and is_first:
            os.kill(os.getpid(), signal.SIGTERM)
        return tenths(step, is_end)

    is_first = True
    whole = Fixture(tmp_path / "whole", steps=2, evaluate=tenths, evaluate_every=1)
    whole.do_all()
    made = Fixture(tmp_path / "cut", steps=2, evaluate=evaluate, evaluate_every=1, checkpoint_every=1)
    with made.interruption, pytest.raises(StepAborted):
        made.do_all()
    with pytest.raises(Interrupted, match="interrupted after step 1 of 2"):
        made.run.interrupt()
    assert [r["step"] for r in read_metrics(tmp_path / "cut")] == [0]
    is_first = False
    for _ in range(2):  # once more from the same checkpoint: step 1 is recorded once
        made = Fixture(tmp_path / "cut", steps=2, evaluate=evaluate, evaluate_every=1, checkpoint_every=5)
        RunFolder(tmp_path / "cut").rewind(1)
        made.run.resume(RunFolder(tmp_path / "cut").checkpoint(1))
        made.do_all()
        records = [timeless(read_metrics(tmp_path / name)) for name in ("cut", "whole")]
        strip = [[{k: v for k, v in r.items() if "digest" not in k} for r in run] for run in records]
        assert strip[0] == strip[1]


class SlowModel(Model):
    """Its file is written when the step after the checkpoint has begun."""

    def __init__(self):
        super().__init__()
        self.happened = []
        self.next_step_begun = threading.Event()

    def stage(self, folder):
        self.happened.append("copied aside")
        return [self._await_step, *super().stage(folder)]

    def _await_step(self):
        assert self.next_step_begun.wait(600)
        self.happened.append("written")


def test_the_next_step_begins_while_the_checkpoint_is_written(tmp_path):
    made = Fixture(tmp_path, steps=3)
    made.run._roles["policy"] = made.policy = slow = SlowModel()
    for step in made.run.steps():
        if step == 3:
            slow.happened.append("next step")
            assert RunFolder(tmp_path).checkpoints() == []
            slow.next_step_begun.set()
        made.do(step)
    assert slow.happened[:3] == ["copied aside", "next step", "written"]
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["000002", "000003"], (
        "the end of the run waits for the last one"
    )
    assert (tmp_path / "checkpoints" / "000002" / "policy" / "value").read_text() == "2"


def test_a_checkpoint_that_could_not_be_written_stops_the_run_before_its_next_step(tmp_path):
    made = Fixture(tmp_path, steps=9)
    steps = made.run.steps()
    for _ in range(3):
        made.do(next(steps))
    made.policy.stage = lambda folder: [partial((folder / "none" / "value").write_text, "4")]
    made.do(next(steps))
    failed = made.run.checkpoints._in_flight.done
    assert isinstance(failed.exception(60), FileNotFoundError)
    with pytest.raises(RunError, match=rf"{tmp_path}/checkpoints/000004: .*FileNotFoundError.*priml train {tmp_path}"):
        next(steps)
    assert made.run.completed == 4
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["000002"]


def entropy_alarm(action):
    return Alarms(NO_ALARMS.model_copy(update={"entropy": EntropyAlarm(action=action, steps=1)}))


def test_an_alarm_that_halves_is_told_recorded_and_survives_a_checkpoint(tmp_path, said):
    made = Fixture(tmp_path, alarms=entropy_alarm("halve"))
    steps = made.run.steps()
    made.do(next(steps))
    assert made.run.process_factor(None) == 1.0
    made.do(next(steps), entropy=0.001)
    assert made.run.process_factor(None) == 0.5
    assert [record.get("alarm/entropy") for record in read_metrics(tmp_path)] == [None, 1]
    assert read_metrics(tmp_path)[1]["alarm/process_factor"] == 0.5
    assert len(said) == 1
    assert said[0].startswith("alarm entropy after step 2: the policy's entropy was below 0.1")
    assert said[0].endswith("the process weight is now x0.5")
    made.run.checkpoint()
    again = Fixture(tmp_path, alarms=entropy_alarm("halve"))
    again.run.resume(RunFolder(tmp_path).checkpoints()[-1])
    assert again.run.process_factor(None) == 0.5


def test_a_gate_goes_on_with_what_it_saw(tmp_path):
    made = Fixture(tmp_path, gate=Gate())
    made.do(next(made.run.steps()))
    made.run.process_factor(PrmReport(0.5, 0.0, mixed_groups=9, mixed_accuracy=0.9))
    made.run.checkpoint()
    again = Fixture(tmp_path, gate=Gate())
    again.run.resume(RunFolder(tmp_path).checkpoints()[-1])
    fresh = Fixture(tmp_path / "fresh", gate=Gate())
    report = PrmReport(0.5, 0.0, mixed_groups=9, mixed_accuracy=0.7)
    assert again.run.process_factor(report) == made.run.process_factor(report) != fresh.run.process_factor(report)


def test_an_alarm_that_stops_saves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    made = Fixture(tmp_path, alarms=entropy_alarm("stop"), checkpoint_every=None)
    steps = made.run.steps()
    made.do(next(steps))
    with pytest.raises(AlarmError, match=r"alarms\.entropy\.action: warn in .*config\.yaml, then: priml train"):
        made.do(next(steps), entropy=0.001)
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["000002"]


def test_an_interruption_is_answered_between_steps_with_a_checkpoint(tmp_path):
    made = Fixture(tmp_path, checkpoint_every=None)
    steps = made.run.steps()
    made.do(next(steps))
    made.interruption.requested = True
    with pytest.raises(Interrupted, match=f"after step 1 of 4; go on with: priml train {tmp_path}"):
        next(steps)
    assert [p.name for p in RunFolder(tmp_path).checkpoints()] == ["000001"]


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    made = Fixture(tmp_path)
    made.interruption.requested = True
    with pytest.raises(Interrupted, match="after step 0"):
        made.do_all()
    assert RunFolder(tmp_path).checkpoints() == []


def test_a_step_that_fails_half_way_does_not_move_the_saved_position(tmp_path):
    made = Fixture(tmp_path, checkpoint_every=None)
    steps = made.run.steps()
    made.do(next(steps))
    next(steps)
    made.stream.position += 10  # the second step draws, then fails
    made.run.checkpoint()
    state = json.loads((RunFolder(tmp_path).checkpoints()[0] / "state.json").read_text())
    assert state["stream"] == {"position": 10}


def test_evaluations_come_before_the_first_step_by_schedule_and_after_the_last(tmp_path):
    asked = []

    def evaluate(step, is_end):
        asked.append((step, is_end))
        return {"greedy": {"mean": step / 10, "low": 0.0, "high": 1.0, "n": 3}, "undecided": 0}

    made = Fixture(tmp_path, steps=5, evaluate=evaluate, evaluate_every=2)
    made.do_all()
    assert asked == [(0, True), (2, False), (4, False), (5, True)]
    records = read_metrics(tmp_path)
    assert [(r["step"], r["eval/greedy"]) for r in records if "eval/greedy" in r] == [
        (0, 0),
        (2, 0.2),
        (4, 0.4),
        (5, 0.5),
    ]
    summary = made.run.finish({"seed": 3})
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"]["before"]["greedy"]["mean"] == 0.0
    assert summary["accuracy"]["after"]["greedy"]["mean"] == 0.5
    assert (summary["steps"], summary["seed"], summary["tokens"]) == (5, 3, {"sampled": 20, "trained": 20})
    assert (tmp_path / "model" / "model").read_text() == "5"


def test_the_batch_of_a_non_finite_step_is_kept(tmp_path):
    made = Fixture(tmp_path)
    error = NonFiniteError("policy loss is nan")
    assert made.run.save_failure(error) is None
    error.tensors = {"tokens": torch.arange(6).reshape(2, 3).T}
    path = made.run.save_failure(error)
    assert path == tmp_path / "failed" / "000001.safetensors"
    assert load_file(path)["tokens"].tolist() == [[0, 3], [1, 4], [2, 5]]


def held_out(means):
    """Evaluations with these greedy means, by step, each sure to a tenth."""
    scores = {step: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 9} for step, mean in means.items()}
    return lambda step, is_end: {"greedy": scores[step], "undecided": 0}


@pytest.mark.parametrize(
    ("means", "best", "kept"),
    [
        ({0: 0.2, 1: 0.5, 2: 0.9, 3: 0.6, 4: 0.5}, 2, "2"),
        ({0: 0.2, 1: 0.9, 2: 0.9, 3: 0.6, 4: 0.5}, 2, "1"),
        ({0: 0.2, 1: 0.5, 2: 0.9, 3: 0.6, 4: 0.9}, 4, None),
        ({0: 0.9, 1: 0.5, 2: 0.6, 3: 0.7, 4: 0.8}, 0, None),
    ],
    ids=["in the middle", "the first of equals", "the last", "before training"],
)
def test_the_policy_of_the_best_evaluation_is_kept_while_the_last_is_worse(tmp_path, means, best, kept):
    made = Fixture(tmp_path, evaluate=held_out(means), evaluate_every=1, keep_best=True)
    made.do_all()
    assert made.run.finish({})["best"]["step"] == best
    assert (tmp_path / "best").exists() == (kept is not None)
    if kept:
        assert (tmp_path / "best" / "model").read_text() == kept
    assert not list(tmp_path.glob(".*.partial"))


def test_without_keep_best_no_second_model_is_written(tmp_path):
    made = Fixture(tmp_path, evaluate=held_out({0: 0.1, 1: 0.5, 2: 0.9, 3: 0.6, 4: 0.5}), evaluate_every=1)
    made.do_all()
    assert made.run.finish({})["best"]["step"] == 2
    assert not (tmp_path / "best").exists()


def test_a_held_out_collapse_is_an_alarm_of_the_step(tmp_path, said):
    alarms = Alarms(NO_ALARMS.model_copy(update={"accuracy": AccuracyAlarm(action="stop")}))
    made = Fixture(tmp_path, evaluate=held_out({0: 0.9, 1: 0.8, 2: 0.4}), evaluate_every=1, alarms=alarms)
    steps = made.run.steps()
    made.do(next(steps))
    with pytest.raises(AlarmError, match="stopped by alarm accuracy after step 2"):
        made.do(next(steps))
    assert [record.get("alarm/accuracy") for record in read_metrics(tmp_path)] == [None, None, 1]
    assert "from 0.900 [0.800, 1.000] before training to 0.400 [0.300, 0.500] after step 2" in said[-1]
