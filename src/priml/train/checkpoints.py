"""The state of a run on disk: checkpoints, complete or absent, what must be in step with them, and failed batches."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file

from priml.errors import NonFiniteError
from priml.telemetry.jsonl import keep_steps


class Saveable(Protocol):
    """Something with a folder of its own in each checkpoint."""

    def save(self, folder: Path) -> None:
        """Write everything that a resumed run needs."""
        ...

    def load(self, folder: Path) -> None:
        """Restore it."""
        ...


def checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (run_dir / "checkpoints").glob("*") if re.fullmatch(r"\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step whose end a checkpoint holds."""
    return int(checkpoint.name)


def save_checkpoint(
    run_dir: Path, step: int, parts: Mapping[str, Saveable], state: Mapping[str, Any], *, keep: int
) -> None:
    """Write `checkpoints/000012` aside and rename it, then delete all but the newest `keep`."""
    final = run_dir / "checkpoints" / f"{step:06d}"
    if final.exists():
        return
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name, part in parts.items():
            (aside / name).mkdir(parents=True)
            part.save(aside / name)
        (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        _flush(aside)
        aside.rename(final)
    except BaseException:  # whatever stopped it, a half-written checkpoint only takes the space
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(checkpoint: Path, parts: Mapping[str, Saveable]) -> dict[str, Any]:
    """Restore the parts; returns the state that was saved beside them."""
    for name, part in parts.items():
        part.load(checkpoint / name)
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def rewind(run_dir: Path, step: int) -> None:
    """Forget what was recorded after `step`: those steps will be done, and recorded, again. 0 forgets everything."""
    last = step if step > 0 else -1  # step 0 holds the evaluation before training, which a new start repeats
    for name in ("metrics.jsonl", "spans.jsonl"):
        keep_steps(run_dir / name, last)
    for name in ("rollouts/*.parquet", "evaluations/*.json"):
        for path in run_dir.glob(name):
            if int(path.stem) > last:
                path.unlink()
    for path in run_dir.glob("*/.*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_failed_batch(run_dir: Path, step: int, error: NonFiniteError) -> Path | None:
    """Write `failed/000012.safetensors`, the batch that made a non-finite number; None when the error brought none."""
    if not error.tensors:
        return None
    path = run_dir / "failed" / f"{step:06d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in error.tensors.items()}, path)
    return path


def _flush(folder: Path) -> None:
    """Onto the disk before the rename, or a power cut could leave a complete name on empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
