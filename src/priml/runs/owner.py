"""One process at a time writes to a run folder."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOLCK, ENOSYS, EOPNOTSUPP

from filelock import FileLock, Timeout

from priml.errors import UsageError
from priml.files import write_json
from priml.runs.folder import RunFolder

logger = logging.getLogger(__name__)

_WITHOUT_LOCKS = (ENOLCK, ENOSYS, EOPNOTSUPP)
"""What some network file systems answer."""
WAIT_S = 3.0
"""Children of a killed owner keep its lock until they end, too."""


@contextmanager
def owned(folder: RunFolder) -> Iterator[None]:
    """Inside, the folder belongs to this process. The system takes the lock back when the process dies, however it
    dies.

    Raises:
        UsageError: another process has the folder.
    """
    note = folder.path / ".owner.json"
    lock = FileLock(folder.path / ".lock", timeout=WAIT_S)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{folder}: found a run in progress in this folder ({_describe(note)}), need a folder that no process "
            "writes to; wait for it or stop it, or choose another run_dir"
        ) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise
        logger.info(f"{folder}: this file system has no locks ({error}); see to it that one process alone uses it")
        yield
        return
    try:
        write_json(note, {"host": platform.node(), "pid": os.getpid()})
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def is_owned(folder: RunFolder) -> bool:
    """Whether a process writes to the folder now. False where the file system has no locks."""
    path = folder.path / ".lock"
    if not path.is_file():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False
    lock.release()
    return False


def _describe(note: os.PathLike[str]) -> str:
    try:
        with open(note, encoding="utf-8") as file:
            owner = json.load(file)
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError):
        return "its process is not on record"
