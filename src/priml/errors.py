"""The few errors priml raises on purpose. Each says what was found, what was needed and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PrimlError(Exception):
    """Base of all errors that are answered with one clear message instead of a traceback."""

    exit_code = 1


class UsageError(PrimlError):
    """Wrong usage, settings, data or model folders: nothing has been run yet."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting that is unknown, of the wrong type, or impossible beside another one."""


class DataError(UsageError):
    """A data file that is missing, empty or holds a row that cannot be used."""


class ModelError(UsageError):
    """A model folder or Hub id that cannot be loaded, or does not fit its place."""


class RunError(PrimlError):
    """The run could not go on: starved of data, out of disk, non-finite numbers."""


class RankLostError(RunError):
    """A process that trains has ended, or what it held is gone. The run can begin again from its last checkpoint."""


class AlarmError(RunError):
    """An alarm whose action is to stop has fired. A checkpoint was saved."""


class NonFiniteError(RunError):
    """A loss or gradient was NaN or infinite. Raised before the optimizer moved."""

    tensors: Mapping[str, Any] | None = None
    """The batch it happened on, by name, when the role that raised it could add it."""


class PausedError(PrimlError):
    """The run's time is up, as its settings say; a checkpoint was saved. Nothing failed."""

    exit_code = 0


class Interrupted(PrimlError):
    """The user pressed Ctrl-C; a checkpoint was saved if there was anything to save."""

    exit_code = 130
