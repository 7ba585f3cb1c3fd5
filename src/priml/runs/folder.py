"""The folder of a run: where each file is, and which steps are on record."""

from __future__ import annotations

import json
import os
import re
import shutil
from errno import EDQUOT, ENOSPC
from pathlib import Path

from priml.errors import UsageError
from priml.files import write_whole


class RunFolder:
    """The files of a run. Steps count from 1; files of a step are named by its number, as in `000012`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.tokenizer = path / "tokenizer"
        self.summary = path / "summary.json"
        """Its presence says that the run is finished."""
        self.report = path / "report.html"
        # of training
        self.metrics = path / "metrics.jsonl"
        self.spans = path / "spans.jsonl"
        self.model = path / "model"
        self.best = path / "best"
        """The policy of the best held-out evaluation, if that is not the last."""
        # of evaluation and scoring
        self.results = path / "eval.json"
        self.table = path / "table.md"
        self.scores = path / "scores.parquet"
        self.ranking = path / "rank.json"
        self.evaluation = path / "evaluation.json"

    def __str__(self) -> str:
        return str(self.path)

    def rollouts(self, step: int) -> Path:
        """The responses of a training step."""
        return self.path / "rollouts" / f"{step:06d}.parquet"

    def held_out(self, step: int) -> Path:
        """The held-out scores after a training step; step 0: before training."""
        return self.path / "evaluations" / f"{step:06d}.json"

    def held_out_files(self) -> list[Path]:
        """Held-out scores of all steps on record, steps rising."""
        return sorted(path for path in self.path.glob("evaluations/*.json") if path.stem.isdecimal())

    def checkpoint(self, step: int) -> Path:
        """The state after a step."""
        return self.path / "checkpoints" / f"{step:06d}"

    def failed_batch(self, step: int) -> Path:
        """The batch that made a number that is not finite."""
        return self.path / "failed" / f"{step:06d}.safetensors"

    def untrained(self, step: int) -> Path:
        """The responses of a step of which too few passed the filter."""
        return self.path / "failed" / f"{step:06d}.parquet"

    def responses(self, name: str) -> Path:
        """The responses to a named set of problems, or their scores."""
        return self.path / f"{name.replace('/', '-')}.parquet"

    def unfinished(self, name: str) -> Path:
        """The responses to a named set of problems of which some are still to come, one a line."""
        return self.responses(name).with_suffix(".partial.jsonl")

    def check_unused(self, *, hint: str = "") -> None:
        """Make the folder; refuse one that holds a run, as nothing is ever overwritten. `hint` is one more way on."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (ENOSPC, EDQUOT):
                raise
            raise UsageError(
                f"run_dir: {self} cannot be made a folder ({error.strerror}); choose another run_dir"
            ) from None
        if self.config.exists() or self.metrics.exists():
            raise UsageError(f"run_dir: {self} already holds a run; {hint}choose another run_dir, or remove the folder")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UsageError(f"run_dir: {self} cannot be written to (permission denied); choose another run_dir")

    def rollout_files(self) -> list[Path]:
        """Rollout files of all steps on record, steps rising."""
        return sorted(path for path in self.path.glob("rollouts/*.parquet") if path.stem.isdecimal())

    def checkpoints(self) -> list[Path]:
        """The complete ones, steps rising. Each is named by its step; entries with other names, and empty ones, are
        none."""
        numbered = [path for path in self.path.glob("checkpoints/*") if re.fullmatch(r"\d+", path.name)]
        found = [path for path in numbered if path.is_dir() and any(path.iterdir())]
        return sorted(found, key=lambda path: int(path.name))

    def last_recorded_step(self) -> int:
        """The step of the last record of metrics; -1 without any."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        return json.loads(lines[-1])["step"] if lines else -1

    def rewind(self, step: int) -> None:
        """Forget what was saved and recorded after `step`: those steps will be done again. 0 forgets everything."""
        for path in reversed(self.checkpoints()):  # first: one without the records before it would leave holes
            if int(path.name) > step:
                shutil.rmtree(path.rename(path.with_name(f".{path.name}.partial")))
        last = step if step > 0 else -1  # step 0 holds the evaluation before training, which a new start repeats
        for path in (self.metrics, self.spans):
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                write_whole(path, "".join(line for line in lines if _step_in(line) <= last))
        for pattern in ("rollouts/*.parquet", "evaluations/*.json"):
            for path in self.path.glob(pattern):
                if int(path.stem) > last:
                    path.unlink()
        for path in [*self.path.glob("*/.*.partial"), *self.path.glob(".*.partial")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _step_in(line: str) -> float:
    """The step of a record; infinite for a line that was cut off when the process died."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")
