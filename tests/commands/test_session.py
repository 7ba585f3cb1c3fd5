from errno import EDQUOT, ENOENT, ENOSPC

import pytest

from priml.commands.session import checkpoint_to_resume, explain_full_disk, is_disk_full, run_folder_from
from priml.errors import RunError, UsageError
from priml.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(ENOSPC, "full"), True),
        (OSError(EDQUOT, "quota"), True),
        (Exception("No space left on device (os error 28)"), True),
        (Exception("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"), True),
        (OSError(ENOENT, "missing"), False),
        (Exception("os error 280"), False),
    ],
)
def test_a_full_disk_is_recognised_whoever_reports_it(error, is_full):
    assert is_disk_full(error) is is_full


def test_a_full_disk_becomes_a_message_and_other_errors_pass(tmp_path):
    with (
        pytest.raises(RunError, match=r"no space left on the disk \(\d+\.\d\d GiB free\); make room, then rest"),
        explain_full_disk(RunFolder(tmp_path), lambda: "rest"),
    ):
        raise OSError(ENOSPC, "full")
    with pytest.raises(OSError, match="missing"), explain_full_disk(RunFolder(tmp_path), lambda: "rest"):
        raise OSError(ENOENT, "missing")


def test_a_run_in_a_folder_named_checkpoints_is_a_run(tmp_path):
    run = tmp_path / "checkpoints" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    assert run_folder_from(run).path == run
    assert run_folder_from(run / "checkpoints" / "000004").path == run


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    folder = RunFolder(tmp_path)
    assert checkpoint_to_resume(tmp_path, folder) is None
    for step in (2, 4):
        folder.checkpoint(step).mkdir(parents=True)
        (folder.checkpoint(step) / "state.json").touch()
    assert checkpoint_to_resume(tmp_path, folder) == folder.checkpoint(4)
    assert checkpoint_to_resume(folder.checkpoint(2), folder) == folder.checkpoint(2)
    with pytest.raises(
        UsageError, match="000003: found no such checkpoint, need one of those of the run: 000002, 000004"
    ):
        checkpoint_to_resume(folder.checkpoint(3), folder)
