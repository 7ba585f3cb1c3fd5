"""More steps for a run, also for a finished one."""

from __future__ import annotations

import re

from priml.config.load import dump_config, load_config
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.files import write_whole
from priml.runs.folder import RunFolder
from priml.runs.manifest import read_manifest
from priml.runs.owner import owned


def extend(folder: RunFolder, steps: str) -> None:
    """Set the number of steps of a training run: `+200` adds to those of its settings, `800` is the new number.

    A finished run is unfinished afterwards, and can be resumed from its last checkpoint.

    Raises:
        UsageError: not a run of `priml train`, no number, or not more steps than have been done.
    """
    if not re.fullmatch(r"\+?[1-9]\d{0,8}", steps):
        raise UsageError(f"steps: found {steps!r}, need a number, as in steps=800, or more steps, as in steps=+200")
    if not folder.config.is_file():
        raise UsageError(f"{folder}: not a run folder (no config.yaml in it); give a settings file or a run folder")
    kind = read_manifest(folder)["kind"]
    if kind != "train":
        raise UsageError(f"{folder}: found a run of `priml {kind}`, need one of `priml train` to extend it")
    cfg = load_config(TrainConfig, folder.config)
    total = cfg.steps + int(steps) if steps[0] == "+" else int(steps)
    done = folder.last_recorded_step()
    if total <= done:
        raise UsageError(
            f"{folder}: found steps={steps}, but {done} steps are done already; need more, as in steps=+200"
        )
    with owned(folder):
        folder.summary.unlink(missing_ok=True)  # first: if this process ends here, the run can still be finished
        write_whole(folder.config, dump_config(cfg.model_copy(update={"steps": total})))
