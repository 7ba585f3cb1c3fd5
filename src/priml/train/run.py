"""One run on disk: its steps, records, evaluations, checkpoints, and how it ends."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from priml.batch import Batch
from priml.errors import Interrupted, NonFiniteError, RunError
from priml.roles.base import Policy, PolicyReport, Prm, PrmReport, ProcessRewards
from priml.telemetry.base import Tracker
from priml.telemetry.timing import Clock
from priml.train.collect import GroupPool
from priml.train.rollouts import add_training_columns, rollout_rows, write_rollouts


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
        step_ends: Callable[[Sequence[int]], list[int]],
    ) -> None:
        self.folder = folder
        self._policy = policy
        self._prm = prm
        self._stream = stream
        self._evaluate = evaluate
        self._schedule = schedule
        self._clock = clock
        self._trackers = list(trackers)
        self._step_ends = step_ends
        self._completed = 0
        self._step_began = 0.0
        self._interrupted = False
        self._tokens = {"sampled": 0, "trained": 0}
        self._seconds = 0.0

    # --- the loop's two calls ------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The steps still to do. Evaluates before the first and ends, checkpointed, on Ctrl-C between steps.

        Raises:
            Interrupted: after the checkpoint was saved.
        """
        with self._listening():
            if self._completed == 0:
                self._log_evaluation(0)
            while self._completed < self._schedule.steps:
                if self._interrupted:
                    self.checkpoint()
                    raise Interrupted(f"interrupted after step {self._completed}; go on with: priml train {self.folder}")
                self._clock.step = self._completed + 1
                self._step_began = time.perf_counter()
                yield self._completed + 1

    def record(
        self,
        pool: GroupPool,
        batch: Batch,
        process: ProcessRewards,
        advantages_BT: Tensor,
        prm_report: PrmReport | None,
        policy_report: PolicyReport,
    ) -> None:
        """A finished step: rollouts, metrics and spans; evaluation and checkpoint when they are due."""
        step = batch.step
        elapsed = time.perf_counter() - self._step_began
        rows = rollout_rows(step, pool.judged, self._step_ends)
        add_training_columns(rows, batch, process, advantages_BT)
        with _disk_errors(self.folder):
            write_rollouts(rows, self.folder / "rollouts" / f"{step:06d}.parquet")

        seconds, spans = self._clock.take()
        self._completed = step
        self._seconds += elapsed
        self._tokens["sampled"] += sum(len(row["response_ids"]) for row in rows)
        self._tokens["trained"] += int(batch.response_lengths_B.sum())
        metrics = {
            "step": step,
            **_outcome_metrics(rows),
            **{f"filter/{fate}": pool.counts[fate] for fate in ("kept", "too_easy", "too_hard", "truncated", "undecided")},
            "filter/sampled": len(pool.judged),
            **(prm_report.metrics() if prm_report else {}),
            **policy_report.metrics(),
            **{f"time/{phase}": round(value, 6) for phase, value in seconds.items()},
            "time/step": round(elapsed, 6),
            "tokens/sampled": sum(len(row["response_ids"]) for row in rows),
            "tokens/trained": int(batch.response_lengths_B.sum()),
            "memory/peak_gib": round(_peak_gib(), 3),
        }
        is_last = step == self._schedule.steps
        if _due(step, self._schedule.evaluate_every) or is_last:
            metrics |= self._evaluation_metrics(step)
        if _due(step, self._schedule.checkpoint_every) or is_last:
            metrics |= self._digests()
            self.checkpoint()
        with _disk_errors(self.folder):
            with (self.folder / "spans.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(span) + "\n" for span in spans)
            for tracker in self._trackers:
                tracker.log(metrics)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Save the whole state: complete or absent."""
        final = self.folder / "checkpoints" / f"{self._completed:06d}"
        if final.exists():
            return
        aside = final.with_name(f".{final.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            with _disk_errors(self.folder):
                for name, role in (("policy", self._policy), ("prm", self._prm)):
                    (aside / name).mkdir(parents=True)
                    role.save(aside / name)
                state = {
                    "step": self._completed,
                    "stream": self._stream.state(),
                    "tokens": self._tokens,
                    "seconds": self._seconds,
                }
                (aside / "state.json").write_text(json.dumps(state))
                aside.rename(final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        for old in checkpoints(self.folder)[: -self._schedule.keep_checkpoints]:
            shutil.rmtree(old)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run; later records of the interrupted run are dropped."""
        state = json.loads((checkpoint / "state.json").read_text())
        self._policy.load(checkpoint / "policy")
        self._prm.load(checkpoint / "prm")
        self._stream.load(state["stream"])
        self._completed = state["step"]
        self._tokens = state["tokens"]
        self._seconds = state["seconds"]
        for path in (self.folder / "rollouts").glob("*.parquet"):
            if int(path.stem) > self._completed:
                path.unlink()

    @property
    def completed(self) -> int:
        """Finished steps."""
        return self._completed

    # --- endings -------------------------------------------------------------------------------------------------

    def finish(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Export the models and write the summary of a run whose steps are all done."""
        with _disk_errors(self.folder):
            self._policy.export(self.folder / "model")
            self._prm.export(self.folder / "prm")
            accuracy = {
                name: json.loads(path.read_text())
                for name, path in (("before", self._scores_path(0)), ("after", self._scores_path(self._completed)))
                if path.exists()
            }
            summary = {
                "accuracy": accuracy,
                "steps": self._completed,
                "seconds": round(self._seconds, 3),
                "tokens": self._tokens,
                **extra,
            }
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        return summary

    def save_failure(self, error: NonFiniteError) -> Path | None:
        """Keep the batch that made a non-finite number, for the autopsy."""
        if not error.tensors:
            return None
        from safetensors.torch import save_file

        path = self.folder / "failed" / f"{self._completed + 1:06d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({name: t.contiguous() for name, t in error.tensors.items()}, path)
        return path

    def close(self) -> None:
        """Let go of files and screen."""
        for tracker in self._trackers:
            tracker.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _log_evaluation(self, step: int) -> None:
        metrics = self._evaluation_metrics(step)
        if metrics:
            for tracker in self._trackers:
                tracker.log({"step": step, **metrics})

    def _evaluation_metrics(self, step: int) -> dict[str, float]:
        if self._evaluate is None:
            return {}
        began = time.perf_counter()
        scores = self._evaluate(step, step in (0, self._schedule.steps))
        self._scores_path(step).parent.mkdir(exist_ok=True)
        self._scores_path(step).write_text(json.dumps(scores))
        named = {f"eval/{name}": scores[name]["mean"] for name in ("greedy", "sampled") if name in scores}
        return named | {"time/evaluate": round(time.perf_counter() - began, 6)}

    def _scores_path(self, step: int) -> Path:
        return self.folder / "evaluations" / f"{step:06d}.json"

    def _digests(self) -> dict[str, str]:
        digests = {"digest/policy": self._policy.digest(), "digest/prm": self._prm.digest()}
        return {name: digest[:16] for name, digest in digests.items() if digest is not None}

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """The first Ctrl-C lets the step finish and checkpoints; the second stops at once."""

        def on_interrupt(signum: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            for tracker in self._trackers:
                if hasattr(tracker, "say"):
                    tracker.say("Ctrl-C: finishing this step, then saving a checkpoint. Once more stops now, unsaved.")  # pyright: ignore

        try:
            previous = signal.signal(signal.SIGINT, on_interrupt)
        except ValueError:  # not the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [p for p in (folder / "checkpoints").glob("*") if re.fullmatch(r"\d{6}", p.name)]
    return sorted(found, key=lambda p: int(p.name))


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _outcome_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    outcomes = [row["outcome"] for row in rows if row["outcome"] is not None]
    kept = [row["outcome"] for row in rows if row["fate"] == "kept"]
    metrics: dict[str, float] = {
        f"verdict/{label}": sum(row["verdict"] == label for row in rows) for label in ("correct", "wrong", "undecided")
    }
    if outcomes:
        metrics["outcome/mean"] = sum(outcomes) / len(outcomes)
    metrics["outcome/kept_mean"] = sum(kept) / len(kept)
    metrics["response/length_mean"] = sum(len(row["response_ids"]) for row in rows) / len(rows)
    metrics["response/truncated"] = sum(row["finish_reason"] == "length" for row in rows) / len(rows)
    return metrics


def _peak_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full disk is an ordinary way for a run to stop: say so, and how to go on."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(folder).free / 2**30
        newest = [p.name for p in checkpoints(folder)][-1:]
        raise RunError(
            f"{folder}: no space left on the disk ({free:.2f} GiB free); make room, then go on with: priml train {folder}"
            + (f" (from checkpoint {newest[0]})" if newest else " (from the start: no checkpoint had been saved)")
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Also for libraries that report the system's error in text only."""
    import errno

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return bool(re.search(r"os error 28|code: 28\b|No space left on device", str(error)))
