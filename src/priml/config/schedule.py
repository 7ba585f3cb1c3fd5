"""Settings of the schedule: when a run is evaluated and saved; and where its metrics go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from priml.config.base import CustomFunction, Settings, ShortForm, Temperature
from priml.config.data import Source


class Evaluate(Settings):
    """Held-out evaluation during training; also done before the first and after the last step."""

    data: Source
    """Held-out problems."""
    every: PositiveInt | None = 16
    """Steps between evaluations; null: only before and after."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled responses per problem beside the greedy one, before and after training (avg@k, pass@k); 0: none."""
    temperature: Temperature = 1.0
    """Temperature of the sampled responses."""
    keep_best: bool = True
    """Keep the policy of the best evaluation in `best/`, while the last one is worse: room for one more model."""


class Checkpoint(Settings):
    """When the whole state of the run is saved."""

    every: PositiveInt | None = 16
    """Steps between checkpoints; null: only when the run ends or is interrupted."""
    keep: PositiveInt = 2
    """How many of the newest checkpoints stay on disk."""
    stop_within: PositiveFloat = 20.0
    """Seconds that a signal leaves a step to end once its weights change; before that it is left at once. Lower it
    where the machine is taken away sooner."""
    max_hours: PositiveFloat | None = None
    """Hours after which a command stops by itself, for machines that are lent by the hour: before a step that would end
    later, it saves a checkpoint and ends with 0. Resumed, the run has as many again."""
    hang_hours: PositiveFloat | None = 4.0
    """Hours after which a phase that has not got on counts as hung: the stacks of all threads go to `stacks.txt`, and
    the run stops so that it can go on. null: never. Raise it where one sampling or evaluation takes longer."""


class SftCheckpoint(Checkpoint):
    """When the whole state of a warm start is saved: its steps are many and short."""

    every: PositiveInt | None = 500
    """Steps between checkpoints; null: only when the run ends or is interrupted."""


class _Service(Settings):
    """What the services have in common."""

    table_every: PositiveInt | None = 10
    """Steps between tables of rollouts (64 of a step); null: none."""


class _Project(_Service):
    project: str = "priml"
    """The project, or experiment, that the run belongs to."""
    name: str | None = None
    """The name of the run there; null: that of its folder."""


class TrackioTracker(_Project):
    """[trackio](https://huggingface.co/docs/trackio), on this machine (needs the extra `trackio`)."""

    kind: Literal["trackio"]


class WandbTracker(_Project):
    """Weights & Biases (needs the extra `wandb`). Set WANDB_MODE=offline to send nothing."""

    kind: Literal["wandb"]
    entity: str | None = None
    """User or team; null: your default."""


class TensorboardTracker(_Service):
    """Event files for TensorBoard in `RUN_DIR/tensorboard` (needs the extra `tensorboard`)."""

    kind: Literal["tensorboard"]


class MlflowTracker(_Project):
    """MLflow (needs the extra `mlflow`)."""

    kind: Literal["mlflow"]
    uri: str | None = None
    """A server, or a folder; null: what MLFLOW_TRACKING_URI says."""


class CustomTracker(Settings):
    """Your own tracker."""

    kind: Literal["custom"]
    function: CustomFunction
    """`file.py:name` or `package.module:name`: called with the run folder, it returns an object with `log(metrics)` and
    `close()`."""


Tracker = Annotated[
    TrackioTracker | WandbTracker | TensorboardTracker | MlflowTracker | CustomTracker,
    Field(discriminator="kind"),
    ShortForm(),
]
