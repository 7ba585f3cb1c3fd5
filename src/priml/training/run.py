"""One run on disk: its steps, records, evaluations, checkpoints, and how it ends."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from priml.config.alarms import NO_ALARMS
from priml.errors import AlarmError, Interrupted, NonFiniteError
from priml.files import write_json
from priml.learners.base import Critic, CriticReport, Policy, PolicyReport, Prm, PrmReport
from priml.trackers.base import Tracker
from priml.trackers.jsonl import append_lines
from priml.training.alarms import Alarm, Alarms
from priml.training.checkpoints import CheckpointWriter, keep_failed_batch, load_checkpoint
from priml.training.interrupt import Interruption
from priml.training.metrics import peak_gib
from priml.training.records import FinishedStep, Records
from priml.training.timing import Clock

logger = logging.getLogger(__name__)


class Resumable(Protocol):
    """Something whose position is part of a checkpoint."""

    def state(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from it."""
        ...


Evaluate = Callable[[int, bool], dict[str, Any]]
"""(completed steps, first or last evaluation of the run) -> scores, fit for JSON."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When things happen, in steps; None: only at the ends of the run."""

    steps: int
    evaluate_every: int | None
    checkpoint_every: int | None
    keep_checkpoints: int

    def evaluates_after(self, step: int) -> bool:
        """After the last step, and every so many before."""
        return self._is_due(step, self.evaluate_every)

    def checkpoints_after(self, step: int) -> bool:
        """After the last step, and every so many before."""
        return self._is_due(step, self.checkpoint_every)

    def _is_due(self, step: int, every: int | None) -> bool:
        return step == self.steps or (every is not None and step % every == 0)


class Run:
    """The life of one run folder. Steps count from 1; checkpoint 000010 holds the state after step 10."""

    def __init__(
        self,
        folder: Path,
        *,
        policy: Policy,
        prm: Prm,
        stream: Resumable,
        evaluate: Evaluate | None,
        schedule: Schedule,
        clock: Clock,
        trackers: Sequence[Tracker],
        records: Records,
        interruption: Interruption,
        sources: Sequence[str] = (),
        critic: Critic | None = None,
        alarms: Alarms | None = None,
        idle: Callable[[float], Mapping[str, float]] = lambda seconds: {},
    ) -> None:
        """`sources` of the problems, if their outcomes are to be told apart; `idle` says which
        share of a step of so many seconds each pool of processes was idle, as metrics."""
        self.folder = folder
        self._policy = policy
        self._prm = prm
        self._critic = critic
        self._stream = stream
        self._evaluate = evaluate
        self._schedule = schedule
        self._clock = clock
        self._trackers = list(trackers)
        self._records = records
        self._interruption = interruption
        self._sources = tuple(sources)
        self._alarms = alarms or Alarms(NO_ALARMS)
        self._idle = idle
        self._checkpoints = CheckpointWriter(folder, keep=schedule.keep_checkpoints, command="priml train")
        self._completed = 0
        self._step_began = 0.0
        self._tokens = {"sampled": 0, "trained": 0}
        self._seconds = 0.0
        # As it was after the last completed step: a step that fails half-way has already drawn prompts.
        self._stream_state = stream.state()

    @property
    def completed(self) -> int:
        """Finished steps."""
        return self._completed

    @property
    def process_factor(self) -> float:
        """What alarms have left of the weight of the process reward."""
        return self._alarms.factor

    # --- the loop's two calls ------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The steps still to do, evaluating before the first; after the last, its checkpoint is complete.

        Raises:
            Interrupted: the user asked for it; the checkpoint is saved.
            RunError: a checkpoint could not be written.
        """
        if self._completed == 0:
            self._log({"step": 0} | self._evaluation_metrics(0))
        while self._completed < self._schedule.steps:
            self._checkpoints.check()
            if self._interruption.requested:
                self.checkpoint()
                raise Interrupted(f"interrupted after step {self._completed}; go on with: priml train {self.folder}")
            self._clock.step = self._completed + 1
            self._step_began = time.perf_counter()
            yield self._completed + 1
        self._checkpoints.wait()

    def record(self, done: FinishedStep, *reports: PrmReport | CriticReport | PolicyReport | None) -> None:
        """A finished step: rollouts, metrics and spans; evaluation and checkpoint when they are due.

        A checkpoint is written while the next steps are done.
        """
        elapsed = time.perf_counter() - self._step_began
        seconds, spans = self._clock.take()
        step = done.step
        path = self.folder / "rollouts" / f"{step:06d}.parquet"
        metrics = {
            "step": step,
            **self._records.save(path, done, self._sources),
            **{name: value for report in reports if report for name, value in report.metrics().items()},
            **{f"time/{phase}": round(value, 6) for phase, value in seconds.items()},
            "time/step": round(elapsed, 6),
            **self._idle(elapsed),
            "memory/peak_gib": round(peak_gib(), 3),
        }
        self._completed = step
        self._seconds += elapsed
        self._tokens = {name: total + metrics[f"tokens/{name}"] for name, total in self._tokens.items()}
        self._stream_state = self._stream.state()
        if self._schedule.evaluates_after(step):
            metrics |= self._evaluation_metrics(step)
        if self._schedule.checkpoints_after(step):
            metrics |= self._digests()
        fired = self._alarms.check(metrics)
        metrics |= {f"alarm/{alarm.name}": 1 for alarm in fired}
        if self._alarms.factor != 1.0:
            metrics["alarm/process_factor"] = self._alarms.factor
        self._log(metrics)
        append_lines(self.folder / "spans.jsonl", spans)
        if self._schedule.checkpoints_after(step):  # last: a step with a checkpoint has all its records
            self._begin_checkpoint()
        self._act_on(fired)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Save the whole state after the last completed step, if there is one, and wait until it is on the disk."""
        if self._completed > 0:
            self._begin_checkpoint()
        self._checkpoints.wait()

    def _begin_checkpoint(self) -> None:
        state = {
            "step": self._completed,
            "stream": self._stream_state,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "alarms": self._alarms.state(),
        }
        self._checkpoints.begin(self._completed, self._parts, state)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run."""
        state = load_checkpoint(checkpoint, self._parts)
        self._stream.load(state["stream"])
        self._stream_state = state["stream"]
        self._completed = state["step"]
        self._tokens = state["tokens"]
        self._seconds = state["seconds"]
        self._alarms.load(state["alarms"])

    # --- endings -------------------------------------------------------------------------------------------------

    def finish(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Export the models and write the summary, whose presence says that the run is finished."""
        self.export()
        places = {"before": self._scores_path(0), "after": self._scores_path(self._completed)}
        summary = {
            "accuracy": {name: json.loads(path.read_text()) for name, path in places.items() if path.exists()},
            "steps": self._completed,
            "seconds": round(self._seconds, 3),
            "tokens": self._tokens,
            **extra,
        }
        write_json(self.folder / "summary.json", summary)
        return summary

    def export(self) -> None:
        """Write `model/` and, if there are any, `prm/` and `critic/` as Hugging Face folders."""
        for name, part in self._parts.items():
            part.export(self.folder / ("model" if name == "policy" else name))

    def save_failure(self, error: NonFiniteError) -> Path | None:
        """Keep the batch that made a non-finite number, for the autopsy."""
        return keep_failed_batch(self.folder, self._completed + 1, error)

    def finishing_checkpoint(self) -> AbstractContextManager[None]:
        """Whatever ends the run inside, the checkpoint in flight gets complete first, unless the user cannot wait."""
        return self._checkpoints.finishing()

    def close(self) -> None:
        """Let go of files and screen."""
        for tracker in self._trackers:
            tracker.close()

    # --- inside --------------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Policy | Prm | Critic]:
        critic = {"critic": self._critic} if self._critic else {}
        return {"policy": self._policy, "prm": self._prm, **critic}

    def _act_on(self, fired: Sequence[Alarm]) -> None:
        for alarm in fired:
            done = f"; the process weight is now x{self.process_factor:g}" if alarm.action == "halve" else ""
            logger.info(f"alarm {alarm.name} after step {self._completed}: {alarm.reason}{done}")
        stopping = [alarm.name for alarm in fired if alarm.action == "stop"]
        if stopping:
            self.checkpoint()
            raise AlarmError(
                f"stopped by alarm {', '.join(stopping)} after step {self._completed}; a checkpoint is saved. To go on "
                f"all the same, set alarms.{stopping[0]}.action: warn in {self.folder / 'config.yaml'}, then: "
                f"priml train {self.folder}"
            )

    def _log(self, metrics: Mapping[str, Any]) -> None:
        if len(metrics) > 1:
            for tracker in self._trackers:
                tracker.log(metrics)

    def _evaluation_metrics(self, step: int) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        began = time.perf_counter()
        scores = self._evaluate(step, step in (0, self._schedule.steps))
        self._scores_path(step).parent.mkdir(exist_ok=True)
        write_json(self._scores_path(step), scores)
        named = _means(scores)
        for source, parts in scores.get("by_source", {}).items():
            named |= {f"{name}/{source}": mean for name, mean in _means(parts).items()}
        return named | {"time/evaluate": round(time.perf_counter() - began, 6)}

    def _scores_path(self, step: int) -> Path:
        return self.folder / "evaluations" / f"{step:06d}.json"

    def _digests(self) -> dict[str, str]:
        digests = {f"digest/{name}": part.digest() for name, part in self._parts.items()}
        return {name: digest[:16] for name, digest in digests.items() if digest is not None}


def _means(scores: Mapping[str, Any]) -> dict[str, float]:
    return {f"eval/{how}": scores[how]["mean"] for how in ("greedy", "sampled") if how in scores}
