"""Waiting for ranks, and naming the rank that is to blame when they fail.

Ray's `max_restarts` does not serve here: without a lost rank the process group of the others is broken, too, so all
ranks begin again from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from priml.distributed.ray.cluster import Actor, Ref, import_ray
from priml.errors import PrimlError, RankLostError, RunError

_ANSWER_S = 20.0
"""How long a living rank may take to say what it does."""
_RESUME = "go on with: priml train RUN_DIR"


class RankWatch:
    """Waits for calls of all ranks and explains their failures.

    A failure of one rank often shows on another one first, so all of them are asked what they do.
    """

    def __init__(self, ranks: Sequence[Actor], timeout_s: float) -> None:
        """`ranks` are the actors; a collective may take `timeout_s` seconds."""
        self._ray = import_ray()
        self._ranks = ranks
        self._timeout_s = timeout_s
        self.is_built = False
        """Whether the ranks have been built. From then on each must answer at any time."""

    def wait_for(self, refs: Sequence[Ref]) -> list[Any]:
        """The results of calls, one of each rank. Raises at the first failure, whichever rank waits for which.

        Raises:
            PrimlError: what a role raised.
            RankLostError: a rank's process ended.
            RunError: a rank failed otherwise, or does not answer.
        """
        pending = list(refs)
        while pending:
            # A collective that hangs fails by itself before this timeout, with a better message.
            done, pending = self._ray.wait(pending, num_returns=1, timeout=2 * self._timeout_s)
            if not done:
                self._check_answers()
            try:
                self._ray.get(done)
            except self._ray.exceptions.RayError as error:
                raise self.explain(error, refs) from None
        return self._ray.get(list(refs))

    def explain(self, error: Exception, refs: Sequence[Ref]) -> Exception:
        """The error to raise for a failed call out of `refs`."""
        progress, lost = self._ask_progress()
        if lost:
            others = "; ".join(f"rank {rank}: {what}" for rank, what in progress.items())
            return RankLostError(
                f"rank {', '.join(map(str, lost))} of {len(self._ranks)} was lost: its process ended"
                + (f" (the others were at: {others})" if others else "")
            )
        cause: Any = error
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = cause.cause or error
        if isinstance(cause, PrimlError):
            return cause
        if not any(word in str(cause).lower() for word in ("timed out", "timeout")):
            last_line = (str(cause).strip().splitlines() or [""])[-1]
            return RunError(f"a rank failed: {type(cause).__name__}: {last_line}")
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=1)
        behind = [rank for rank, ref in enumerate(refs) if ref not in ready]
        heard = "; ".join(f"rank {rank} {progress.get(rank, 'does not answer')}" for rank in range(len(refs)))
        named = f"rank {', '.join(map(str, behind))}" if behind else "some rank"
        return RunError(
            f"{named} did not join the others within {self._timeout_s:g} s. Last heard of: {heard}. Look at the logs "
            f"of that rank's node; raise backend.collective_timeout if it was only slow; {_RESUME}"
        )

    def _check_answers(self) -> None:
        if not self.is_built:
            return
        progress, lost = self._ask_progress()
        quiet = [str(rank) for rank in range(len(self._ranks)) if rank not in progress and rank not in lost]
        if quiet:
            heard = "; ".join(f"rank {rank} {what}" for rank, what in progress.items())
            others = f" (the others: {heard})" if heard else ""
            raise RunError(
                f"rank {', '.join(quiet)} does not answer{others}. Look at the logs of that rank's node; {_RESUME}"
            )

    def _ask_progress(self) -> tuple[dict[int, str], list[int]]:
        """The activity of each rank that answers, and the ranks whose process has ended."""
        asked = [rank.progress.options(concurrency_group="control").remote() for rank in self._ranks]
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)
        progress: dict[int, str] = {}
        lost: list[int] = []
        for rank, ref in enumerate(asked):
            if ref not in ready:
                continue
            try:
                progress[rank] = self._ray.get(ref)
            except self._ray.exceptions.RayActorError:
                lost.append(rank)
        return progress, lost
