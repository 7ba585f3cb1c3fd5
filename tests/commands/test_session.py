from errno import EDQUOT, ENOENT, ENOSPC

import pytest

from priml.commands.session import explain_full_disk, is_disk_full, load_tracker
from priml.config.schedule import CustomTracker
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


def test_a_tracker_without_its_methods_is_refused_before_the_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class T:\n    def __init__(self, folder): pass\n    def log(self, metrics): pass\n")
    with pytest.raises(UsageError, match=r"mine\.py:T returned T without a method 'close'"):
        load_tracker(CustomTracker(kind="custom", function=f"{path}:T"), tmp_path)
