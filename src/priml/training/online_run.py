"""A run of online RL: beside what every run has, rollouts, held-out evaluation, alarms and the times of each phase."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from priml.config.alarms import NO_ALARMS
from priml.errors import AlarmError
from priml.files import append_lines, put_in_place, write_json
from priml.learners.base import CriticReport, PolicyReport, PrmReport, Trainable
from priml.runs.folder import RunFolder
from priml.trackers.base import Tracker
from priml.training.alarms import Alarm, Alarms, HeldOut
from priml.training.gate import TrustGate
from priml.training.interrupt import Interruption
from priml.training.records import FinishedStep, Records
from priml.training.run import Run, Schedule, measured
from priml.training.timing import Clock
from priml.training.watchdog import beat

logger = logging.getLogger(__name__)

Evaluate = Callable[[int, bool], dict[str, Any]]
"""(completed steps, first or last evaluation of the run) -> scores, fit for JSON."""


class Resumable(Protocol):
    """Something whose position is part of a checkpoint."""

    def state(self) -> dict[str, Any]: ...

    def load(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Monitors:
    """What is recorded and watched beside the algorithm."""

    records: Records
    clock: Clock
    evaluate: Evaluate | None = None
    alarms: Alarms = field(default_factory=lambda: Alarms(NO_ALARMS))
    gate: TrustGate = field(default_factory=lambda: TrustGate(None))
    sources: Sequence[str] = ()
    """Sources of the problems whose outcomes are counted separately."""
    idle: Callable[[float], Mapping[str, float]] = lambda elapsed: {}
    """Metrics: the idle share of each pool of processes over the last so many seconds."""


class OnlineRun(Run):
    """The run that the training loop reports to."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        roles: Mapping[str, Trainable],
        stream: Resumable,
        schedule: Schedule,
        monitors: Monitors,
        trackers: Sequence[Tracker],
        interruption: Interruption,
    ) -> None:
        super().__init__(
            folder, command="train", roles=roles, schedule=schedule, trackers=trackers, interruption=interruption
        )
        folder.rollouts(0).parent.mkdir(exist_ok=True)
        self._stream = stream
        self._monitors = monitors
        self._trust = 1.0
        # That after the last completed step: a step that fails half-way has already drawn prompts.
        self._stream_state = stream.state()
        self._unrecorded: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
        """Metrics and spans of the completed step, while its evaluation is not done."""

    def process_factor(self, report: PrmReport | None) -> float:
        """How much of the weight of the process reward counts in this step: as far as the gate trusts the PRM after
        its report, and what alarms have left of it."""
        self._trust = self._monitors.gate.trust(report)
        return self._trust * self._monitors.alarms.factor

    def steps(self) -> Iterator[int]:
        """As in `Run`, with an evaluation before the first step. A step may be aborted until `forbid_abort`."""
        self._finish_record()
        if self.completed == 0 and self._monitors.evaluate is not None:
            self._log({"step": 0} | self._evaluate(0))
        for step in super().steps():
            self._monitors.clock.step = step
            self._interruption.allow_abort()
            yield step

    def record(self, done: FinishedStep, *reports: PrmReport | CriticReport | PolicyReport | None) -> None:
        """Record a finished step: rollouts, metrics and spans; evaluation and checkpoint when they are due."""
        elapsed = time.perf_counter() - self._step_began
        beat("record")
        hidden = self._monitors.clock.hidden("prm", behind="sample")
        seconds, spans = self._monitors.clock.take()
        step = done.step
        metrics = {
            **self._monitors.records.save(self.folder.rollouts(step), done, self._monitors.sources),
            **{name: value for report in reports if report for name, value in report.metrics().items()},
            **({"prm/trust": self._trust} if self._monitors.gate.is_on else {}),
            **{f"time/{phase}": round(value, 6) for phase, value in seconds.items()},
            **({"time/prm_hidden": round(hidden, 6)} if hidden else {}),
            **self._monitors.idle(elapsed),
            **measured(elapsed),
        }
        self._count(step, metrics, elapsed)
        self._stream_state = self._stream.state()
        self._unrecorded = metrics, spans
        self._finish_record()

    def _finish_record(self) -> None:
        """What follows the evaluation of the completed step, which a signal may put off to when the run goes on."""
        if self._unrecorded is None:
            return
        (metrics, spans), step = self._unrecorded, self.completed
        compared: list[Alarm] = []
        if self._schedule.evaluates_after(step) and self._monitors.evaluate is not None:
            metrics = metrics | self._evaluate(step)
            compared = self._compare_with_best()
        digests = self._digests() if self._schedule.checkpoints_after(step) else {}
        fired = [*self._monitors.alarms.check(metrics), *compared]
        self._log({"step": step, **metrics, **digests, **self._alarm_metrics(fired)})
        append_lines(self.folder.spans, spans)
        self._unrecorded = None
        self._checkpoint_when_due()  # last: a step with a checkpoint has all its records
        self._act_on(fired)

    def finish(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        scores = {"before": self.folder.held_out(0), "after": self.folder.held_out(self.completed)}
        accuracy = {name: json.loads(path.read_text()) for name, path in scores.items() if path.exists()}
        best = max(self._held_out(), key=lambda one: (one.mean, one.step), default=None)
        return super().finish({"accuracy": accuracy, "best": asdict(best) if best else None, **extra})

    def _state(self) -> dict[str, Any]:
        watched = {"alarms": self._monitors.alarms.state(), "gate": self._monitors.gate.state()}
        unrecorded = {} if self._unrecorded is None else {"unrecorded": self._unrecorded}
        return super()._state() | {"stream": self._stream_state} | watched | unrecorded

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self._stream.load(state["stream"])
        self._stream_state = state["stream"]
        if "unrecorded" in state and self.folder.last_recorded_step() < self.completed:
            metrics, spans = state["unrecorded"]
            self._unrecorded = metrics, spans
        self._monitors.alarms.load(state["alarms"])
        if "gate" in state:  # version 0.1 had none
            self._monitors.gate.load(state["gate"])

    def _evaluate(self, step: int) -> dict[str, float]:
        assert self._monitors.evaluate is not None, "there is something to evaluate on"
        began = time.perf_counter()
        beat("evaluate")
        self._interruption.allow_abort()
        scores = self._monitors.evaluate(step, step in (0, self._schedule.steps))
        self._interruption.forbid_abort()
        path = self.folder.held_out(step)
        path.parent.mkdir(exist_ok=True)
        write_json(path, scores)
        metrics = _means(scores)
        for source, parts in scores.get("by_source", {}).items():
            metrics |= {f"{name}/{source}": mean for name, mean in _means(parts).items()}
        return metrics | {"time/evaluate": round(time.perf_counter() - began, 6)}

    def _held_out(self) -> list[HeldOut]:
        """All evaluations until now, steps rising."""
        found = [(int(path.stem), json.loads(path.read_text())["greedy"]) for path in self.folder.held_out_files()]
        return [HeldOut(step, greedy["mean"], greedy["low"], greedy["high"]) for step, greedy in found]

    def _compare_with_best(self) -> list[Alarm]:
        """Keep the policy if no evaluation was better, and say if it has become worse."""
        *earlier, last = self._held_out()
        if not earlier:
            return []
        best = max(earlier, key=lambda one: one.mean)
        self._keep_best(best, last)
        return self._monitors.alarms.compare(best, last)

    def _keep_best(self, best: HeldOut, last: HeldOut) -> None:
        """`best/` is the policy of the best evaluation, unless that is the run's last, whose policy is `model/`."""
        is_end = last.step == self._schedule.steps
        if not self._schedule.keep_best or last.mean < best.mean or (last.mean == best.mean and not is_end):
            return
        aside, older = (self.folder.best.with_name(f".{name}.partial") for name in ("best", "older-best"))
        if not is_end:
            self._roles["policy"].export(aside)
        if self.folder.best.exists():
            shutil.rmtree(self.folder.best.rename(older))
        if not is_end:
            put_in_place(aside, self.folder.best)

    def _digests(self) -> dict[str, str]:
        digests = {f"digest/{name}": role.digest() for name, role in self._roles.items()}
        return {name: digest[:16] for name, digest in digests.items() if digest is not None}

    def _alarm_metrics(self, fired: Sequence[Alarm]) -> dict[str, float]:
        metrics: dict[str, float] = {f"alarm/{alarm.name}": 1 for alarm in fired}
        factor = self._monitors.alarms.factor
        return metrics if factor == 1.0 else metrics | {"alarm/process_factor": factor}

    def _act_on(self, fired: Sequence[Alarm]) -> None:
        for alarm in fired:
            done = f"; the process weight is now x{self._monitors.alarms.factor:g}" if alarm.action == "halve" else ""
            logger.info(f"alarm {alarm.name} after step {self.completed}: {alarm.reason}{done}")
        stopping = [alarm.name for alarm in fired if alarm.action == "stop"]
        if stopping:
            self.checkpoint()
            raise AlarmError(
                f"stopped by alarm {', '.join(stopping)} after step {self.completed}; a checkpoint is saved. To go on "
                f"all the same, set alarms.{stopping[0]}.action: warn in {self.folder.config}, then: "
                f"priml train {self.folder}"
            )


def _means(scores: Mapping[str, Any]) -> dict[str, float]:
    return {f"eval/{how}": scores[how]["mean"] for how in ("greedy", "sampled") if how in scores}
