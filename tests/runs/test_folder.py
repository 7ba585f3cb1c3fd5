import json

import pytest

from priml.errors import UsageError
from priml.runs.folder import RunFolder


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_folder_that_holds_a_run_is_refused_with_the_way_on(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="already holds a run; try this; or choose another run_dir, or remove"):
        RunFolder(tmp_path).check_unused(hint="try this; or ")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="cannot be made a folder"):
            RunFolder(path).check_unused()


def test_an_empty_or_new_folder_is_free(tmp_path):
    RunFolder(tmp_path).check_unused()
    RunFolder(tmp_path / "a" / "b").check_unused()
    assert (tmp_path / "a" / "b").is_dir()


def test_checkpoints_come_by_their_steps_and_half_written_ones_do_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.checkpoints() == []
    for name in ("000002", "000010", "1000000", ".000012.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state.json").touch()
    (tmp_path / "checkpoints" / "000014").mkdir()  # empty
    (tmp_path / "checkpoints" / "000016").touch()
    (tmp_path / "checkpoints" / "best").mkdir()
    assert folder.checkpoints() == [folder.checkpoint(step) for step in (2, 10, 1000000)]


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
    RunFolder(tmp_path).rewind(2)
    assert steps_on_disk(tmp_path) == [[0, 1, 2]] * 4


def test_rewinding_forgets_later_checkpoints(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6):
        folder.checkpoint(step).mkdir(parents=True)
        (folder.checkpoint(step) / "state.json").touch()
    folder.rewind(4)
    assert folder.checkpoints() == [folder.checkpoint(2), folder.checkpoint(4)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000002", "000004"]


def test_rewinding_to_the_start_forgets_the_evaluation_before_training_too(tmp_path):
    records(tmp_path, [0, 1])
    RunFolder(tmp_path).rewind(0)
    assert steps_on_disk(tmp_path) == [[]] * 4


def test_rewinding_an_empty_folder_does_nothing(tmp_path):
    RunFolder(tmp_path).rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_rewinding_drops_a_line_cut_off_when_the_process_died(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 1}\n{"step": 1, "again": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    folder.rewind(2)
    assert [json.loads(line) for line in folder.metrics.open()] == [{"step": 1}, {"step": 1, "again": 1}, {"step": 2}]
