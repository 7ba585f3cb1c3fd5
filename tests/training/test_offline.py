from collections.abc import Sequence
from pathlib import Path

from fakes import save
from priml.batch import Batch, Row
from priml.training.offline import Examined, collate_units
from priml.types import Write


class Pupil:
    """Counts its lessons, and says in an examination how many there were."""

    def __init__(self) -> None:
        self.lessons = 0
        self.folders: list[Path] = []

    def update(self, batch: Batch, *, lr_scale: float) -> "Pupil":
        self.lessons += 1
        return self

    def metrics(self) -> dict[str, float]:
        return {"prm/loss": 1.0}

    def examine(self, batches: Sequence[Batch]) -> dict[str, float]:
        return {"auc": 0.5, "reward_mean": float(self.lessons), "accuracy": len(batches) / 10}

    def stage(self, folder: Path) -> list[Write]:
        return [lambda: self.load(folder)]

    def load(self, folder: Path) -> None:
        self.folders.append(folder)

    export = load


def row(token: int, group: int, outcome: float = 1.0) -> Row:
    return Row([1], [token], outcome=outcome, group=group, step_ends=())


def lesson(step: int) -> Batch:
    return collate_units([[row(2, 0)]], [0], step)


def test_units_go_into_a_batch_whole_and_in_the_order_asked_for():
    units = [[row(5, 0), row(6, 0, 0.0)], [row(7, 1)], [row(8, 2), row(9, 2, 0.0)]]
    batch = collate_units(units, [2, 0], 4)
    assert batch.step == 4
    assert batch.tokens_BL[:, 1].tolist() == [8, 9, 5, 6]
    assert batch.groups_B.tolist() == [2, 2, 0, 0]
    assert batch.outcomes_B.tolist() == [1, 0, 1, 0]


def examined_steps(every: int | None, held_out: list[Batch]) -> list[int]:
    learner = Examined(Pupil(), held_out, every=every, steps=5)
    reports = {step: learner.update(lesson(step), lr_scale=1.0).metrics() for step in range(1, 6)}
    assert all(metrics["prm/loss"] == 1.0 for metrics in reports.values())
    return [step for step, metrics in reports.items() if "eval/auc" in metrics]


def test_examinations_come_when_they_are_due_and_after_the_last_step():
    assert examined_steps(2, [lesson(0)]) == [2, 4, 5]
    assert examined_steps(None, [lesson(0)]) == [5]
    assert examined_steps(2, []) == []


def test_shares_and_other_numbers_have_names_of_their_own():
    learner = Examined(Pupil(), [lesson(0)], every=1, steps=5)
    metrics = learner.update(lesson(1), lr_scale=1.0).metrics()
    assert metrics.pop("time/evaluate") >= 0
    assert metrics == {"prm/loss": 1.0, "eval/auc": 0.5, "eval/accuracy": 0.1, "held_out/reward_mean": 1.0}


def test_the_state_is_the_learners(tmp_path: Path):
    pupil = Pupil()
    learner = Examined(pupil, [], every=None, steps=5)
    save(learner, tmp_path / "a")
    learner.load(tmp_path / "b")
    learner.export(tmp_path / "c")
    assert [folder.name for folder in pupil.folders] == ["a", "b", "c"]
