"""Thin adapters to services that show runs: trackio, Weights & Biases, TensorBoard, MLflow.

Each gets the metrics of every step, and now and then a table of rollouts, read from the run folder.
"""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from priml.errors import UsageError

ROWS = 64
"""Rollouts in a table, evenly spread over those of the step."""
_COLUMNS = (
    "problem_id",
    "sample",
    "prompt",
    "response",
    "gold",
    "answer",
    "verdict",
    "reason",
    "outcome",
    "filter_status",
)
Rows = list[dict[str, Any]]


class ServiceTracker(ABC):
    """What the adapters share. Each is a `Tracker`; a failure in it is for `OptionalTracker` to handle."""

    def __init__(self, folder: Path, table_every: int | None) -> None:
        """`table_every`: steps between tables of rollouts; None: no tables."""
        self._folder = folder
        self._table_every = table_every

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Send one step."""
        step = int(metrics["step"])
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and name != "step"}
        self.send(step, numbers)
        path = self._folder / "rollouts" / f"{step:06d}.parquet"
        if self._table_every and step % self._table_every == 0 and path.is_file():
            self.send_rollouts(step, read_rows(path))

    @abstractmethod
    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a step."""

    @abstractmethod
    def send_rollouts(self, step: int, rows: Rows) -> None:
        """Send a table with one row per response."""

    @abstractmethod
    def close(self) -> None:
        """Say that the run has ended."""


class TrackioTracker(ServiceTracker):
    """trackio: local, or on a Hugging Face Space."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], *, project: str, name: str, table_every: int | None
    ) -> None:
        super().__init__(folder, table_every)
        self._trackio = _package("trackio")
        self._run = self._trackio.init(project=project, name=name, config=dict(config), resume="allow", embed=False)

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def send_rollouts(self, step: int, rows: Rows) -> None:
        self._run.log({"rollouts": self._trackio.Table(columns=list(_COLUMNS), data=_cells(rows))}, step=step)

    def close(self) -> None:
        self._trackio.finish()


class WandbTracker(ServiceTracker):
    """Weights & Biases. A run that goes on after an interruption stays one run there."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: str,
        name: str,
        entity: str | None,
        table_every: int | None,
    ) -> None:
        super().__init__(folder, table_every)
        self._wandb = _package("wandb")
        self._run = self._wandb.init(
            project=project,
            name=name,
            entity=entity,
            config=dict(config),
            dir=str(folder),
            id=_id(folder),
            resume="allow",
        )

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def send_rollouts(self, step: int, rows: Rows) -> None:
        self._run.log({"rollouts": self._wandb.Table(columns=list(_COLUMNS), data=_cells(rows))}, step=step)

    def close(self) -> None:
        self._run.finish()


class TensorboardTracker(ServiceTracker):
    """Event files in `RUN_DIR/tensorboard`."""

    def __init__(self, folder: Path, *, table_every: int | None) -> None:
        super().__init__(folder, table_every)
        _package("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def send_rollouts(self, step: int, rows: Rows) -> None:
        # Its texts are Markdown: in an indented block nothing is.
        texts = [
            "\n".join(f"    {name}: {line}" for name in _COLUMNS for line in str(row[name]).splitlines() or [""])
            for row in rows
        ]
        self._writer.add_text("rollouts", "\n\n---\n\n".join(texts), step)

    def close(self) -> None:
        self._writer.close()


class MlflowTracker(ServiceTracker):
    """MLflow, on a server or in a folder."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        uri: str | None,
        project: str,
        name: str,
        table_every: int | None,
    ) -> None:
        super().__init__(folder, table_every)
        mlflow: Any = _package("mlflow")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        tag = {"priml.run": _id(folder)}
        found = self._client.search_runs([experiment_id], f"tags.`priml.run` = '{tag['priml.run']}'")
        self._id = (found[0] if found else self._client.create_run(experiment_id, run_name=name, tags=tag)).info.run_id
        self._client.update_run(self._id, status="RUNNING")
        if not found:
            for key, value in config.items():
                self._client.log_param(self._id, key, value)

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._id, name, value, step=step)

    def send_rollouts(self, step: int, rows: Rows) -> None:
        self._client.log_dict(self._id, {"columns": list(_COLUMNS), "data": _cells(rows)}, f"rollouts/{step:06d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def read_rows(path: Path) -> Rows:
    """Some of the rollouts of a step."""
    rows: Rows = pq.read_table(path, columns=list(_COLUMNS)).to_pylist()
    return [rows[i * len(rows) // ROWS] for i in range(ROWS)] if len(rows) > ROWS else rows


def _cells(rows: Rows) -> list[list[Any]]:
    return [[row[name] for name in _COLUMNS] for row in rows]


def _id(folder: Path) -> str:
    """The same for a run each time it goes on: its manifest is written once."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()[:16]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(
            f"trackers.kind: {name} needs the package {name}, which is not installed; type: pip install 'priml[{name}]'"
        ) from None
