"""The files of a run, however damaged, and the curves of its report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml

from priml.errors import UsageError
from priml.runs.folder import RunFolder
from priml.runs.manifest import check_format

# --- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of one role in one step."""

    role: str
    phase: str
    start: float
    """Seconds since the first span of the step."""
    end: float


OFFLINE_PRM = "prm train"
"""How the manifest names a run of `priml prm train`."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """The files of a run folder. What is missing is empty here and named in `notes`."""

    folder: RunFolder
    config: Mapping[str, Any]
    """The resolved settings."""
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    """Empty while the run is unfinished."""
    metrics: tuple[Mapping[str, float], ...]
    """One per step, steps rising (0 is the evaluation before training); finite numbers only."""
    spans: Mapping[int, tuple[Span, ...]]
    """By step, steps rising."""
    rollouts: tuple[Path, ...]
    """The rollout files, steps rising."""
    notes: tuple[str, ...]
    """What is missing or damaged, in sentences for the reader."""

    @property
    def steps_done(self) -> int:
        """The last training step on record; 0 when there is none."""
        return max((int(m["step"]) for m in self.metrics), default=0)

    @property
    def is_outcome_only(self) -> bool:
        """The settings say that no process reward model was trained."""
        return "prm" in self.config and self.config["prm"] is None

    @property
    def custom_prm(self) -> str | None:
        """The user's function that pays the process rewards; None where it is a model, or nothing."""
        prm = self.config.get("prm")
        return prm.get("function") if isinstance(prm, Mapping) else None

    @property
    def is_supervised(self) -> bool:
        """A run on given responses: nothing is sampled, so there are no rollouts, no phases and no accuracy."""
        return self.manifest.get("kind") in ("sft", OFFLINE_PRM)

    def column(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever a metric was recorded."""
        return [(int(m["step"]), m[key]) for m in self.metrics if key in m]


def read_run(run_dir: Path) -> RunLog:
    """Read a run folder, finished or not.

    Raises:
        UsageError: there is no such folder, nothing of a run in it, or a run of an older priml.
    """
    need = "give the run_dir of a `priml train`, `priml sft` or `priml prm train` run"
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: no such folder; {need}")
    folder = RunFolder(run_dir)
    files = (folder.config, folder.manifest, folder.metrics, folder.spans, folder.rollouts(0).parent, folder.summary)
    if not any(path.exists() for path in files):
        raise UsageError(f"{run_dir}: not a run folder: found none of {', '.join(p.name for p in files)}; {need}")
    notes: list[str] = []
    config = _read_mapping(folder.config, notes, absent="the settings of the run are unknown")
    manifest = _read_mapping(folder.manifest, notes, absent="versions and machine are unknown")
    if manifest:
        check_format(folder, manifest)
    summary = _read_mapping(folder.summary, notes, absent="the run is still going, or ended early")
    metrics = _read_metrics(folder.metrics, notes)
    log = RunLog(folder, config, manifest, summary, metrics, spans={}, rollouts=(), notes=())
    if log.is_supervised:
        return replace(log, notes=tuple(notes))
    spans = _read_spans(folder.spans, notes)
    rollouts = tuple(folder.rollout_files())
    if not rollouts:
        notes.append("There are no rollout files: no responses to show.")
    return replace(log, spans=spans, rollouts=rollouts, notes=tuple(notes))


def _read_mapping(path: Path, notes: list[str], *, absent: str) -> Mapping[str, Any]:
    if not path.exists():
        notes.append(f"There is no {path.name}: {absent}.")
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} cannot be read: {absent}.")
    return {}


def _read_metrics(path: Path, notes: list[str]) -> tuple[Mapping[str, float], ...]:
    by_step: dict[int, dict[str, float]] = {}
    for row in _json_lines(path, notes, absent="there are no training curves"):
        step = row.get("step")
        if _is_number(step):
            # A resumed run may write a step again: the later line counts.
            by_step[int(step)] = {key: value for key, value in row.items() if _is_number(value)}
    return tuple(by_step[step] for step in sorted(by_step))


def _read_spans(path: Path, notes: list[str]) -> Mapping[int, tuple[Span, ...]]:
    by_step: dict[int, list[Span]] = {}
    last_step, last_end = -1, -math.inf
    for row in _json_lines(path, notes, absent="there is no waterfall"):
        step, start, end = row.get("step"), row.get("start"), row.get("end")
        if not (_is_number(step) and _is_number(start) and _is_number(end)):
            continue
        # Spans are written as they end. A step that comes back, or a clock that jumps back, is a resumed run
        # writing the step again: the later attempt counts.
        if step not in by_step or step != last_step or end < last_end:
            by_step[int(step)] = []
        by_step[int(step)].append(Span(str(row.get("role", "")), str(row.get("phase", "")), start, end))
        last_step, last_end = step, end
    found: dict[int, tuple[Span, ...]] = {}
    for step in sorted(by_step):
        origin = min(span.start for span in by_step[step])
        moved = [replace(s, start=s.start - origin, end=s.end - origin) for s in by_step[step]]
        found[step] = tuple(sorted(moved, key=lambda s: (s.start, -s.end)))
    return found


def _json_lines(path: Path, notes: list[str], *, absent: str) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        notes.append(f"There is no {path.name}: {absent}.")
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            yield row
        elif line.strip():
            damaged.append(number)
    if damaged == [len(lines)]:
        notes.append(f"The last line of {path.name} is incomplete: the run is being written, or was cut off.")
    elif damaged:
        notes.append(f"{path.name}: {len(damaged)} unreadable lines were skipped, the first is line {damaged[0]}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- curves ------------------------------------------------------------------------------------------------------

Unit = Literal["share", "number", "count", "seconds"]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart, or one layer of a stacked one."""

    label: str
    values: tuple[float | None, ...]
    """One per step of the chart; None where nothing was recorded."""
    kind: Literal["line", "points", "rule"] = "line"
    """`points` marks sparse measurements; `rule` is a constant to compare with, drawn dashed."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Values over training steps."""

    title: str
    caption: str
    unit: Unit
    steps: tuple[int, ...]
    series: tuple[Series, ...]
    is_stacked: bool = False
    bounds: tuple[float, float] | None = None
    """Fixed vertical range; None follows the data."""
    axis: str = "step"
    """What is counted along the horizontal axis."""


@dataclass(frozen=True, slots=True)
class Section:
    """Charts that belong together, and what could not be drawn."""

    title: str
    lead: str
    charts: tuple[Chart, ...]
    missing: tuple[str, ...]
    """Titles of the charts for which nothing was recorded."""


@dataclass(frozen=True, slots=True)
class _Spec:
    """A chart by the names of its metrics; `rules` are constants to compare with."""

    title: str
    caption: str
    keys: Mapping[str, str]
    unit: Unit = "number"
    rules: Mapping[str, float] | None = None
    is_stacked: bool = False
    bounds: tuple[float, float] | None = None


_LEARNING = (
    _Spec(
        "Outcome of sampled responses",
        "Mean outcome of everything sampled in a step, before the filter, and of what the filter kept for training.",
        {"outcome/mean": "all sampled", "outcome/kept_mean": "kept"},
        "share",
        bounds=(0, 1),
    ),
)
_SUPERVISED = (
    _Spec(
        "Loss",
        "Mean negative log-likelihood of a response token before the step, in nats. Held out: of responses that are "
        "never learnt from, after the step.",
        {"sft/loss": "batch", "held_out/loss": "held out"},
    ),
    _Spec("Learning rate", "As a share of its peak.", {"sft/lr_scale": "share"}, "share", bounds=(0, 1)),
    _Spec("Gradient norm", "Before clipping.", {"sft/grad_norm": "norm"}),
)
_PRM = (
    _Spec(
        "Does it tell right from wrong?",
        "Measured on fresh responses, before the PRM learns from them. Accuracy: the sign of a response's score; "
        "AUC: its rank in the batch; pair accuracy: right above wrong within a prompt. Trust: what the gate leaves of "
        "the process weight.",
        {"prm/accuracy": "accuracy", "prm/auc": "AUC", "prm/pair_accuracy": "pair accuracy", "prm/trust": "trust"},
        rules={"chance": 0.5},
        bounds=(0, 1),
    ),
    _Spec(
        "PRM loss",
        "At ln 2 (a likelihood: at 0) the PRM knows nothing. Lasting values above it mean that it has gone wrong.",
        {"prm/loss": "loss"},
        rules={"ln 2": math.log(2)},
    ),
    _Spec(
        "Mean score of a response",
        "Summed process reward. Compared with the policy itself it is below 0 on average. Compared with frozen "
        "weights, and fitted to outcomes, a steady drift away from 0 says that beta is too small for this response "
        "length.",
        {"prm/reward_mean": "score"},
        rules={"zero": 0.0},
    ),
    _Spec(
        "Score against length",
        "Correlation of a response's score with its length. Far from 0, the PRM pays for length, not for quality.",
        {"prm/length_correlation": "correlation"},
        rules={"zero": 0.0},
        bounds=(-1, 1),
    ),
)
_OFFLINE_PRM = (
    _Spec(
        "Loss",
        "A PRM that knows nothing has ln 2 with ce and dpo, 1/2 with kto and 2 ln 2 with nca.",
        {"prm/loss": "loss"},
    ),
    _Spec(
        "Cross-entropy",
        "Of scores and labels, whatever the loss that is trained with.",
        {"prm/cross_entropy": "batch", "held_out/cross_entropy": "held out"},
        rules={"ln 2": math.log(2)},
    ),
    _Spec("Learning rate", "As a share of its peak.", {"prm/lr_scale": "share"}, "share", bounds=(0, 1)),
    _Spec("Gradient norm", "Before clipping.", {"prm/grad_norm": "norm"}),
)
_POLICY = (
    _Spec(
        "Entropy",
        "Nats per token. A fall to 0 ends exploration; a sudden rise is the first sign of collapse.",
        {"policy/entropy": "entropy"},
    ),
    _Spec("Response length", "Mean tokens of a sampled response.", {"response/length_mean": "tokens"}, "count"),
    _Spec("KL to the policy that sampled", "Nats per token after the update of the step.", {"policy/kl_old": "KL"}),
    _Spec(
        "Clipped tokens",
        "Share of tokens whose probability ratio left the clipping range.",
        {"policy/clip_fraction": "clip fraction"},
        "share",
    ),
    _Spec(
        "Sampler and trainer",
        "How far their log-probs of the same tokens are apart, in nats: rounding where they have the same "
        "weights, more where older ones sample (sampling.max_staleness).",
        {"sampler/mismatch_mean": "mean", "sampler/mismatch_max": "largest"},
    ),
    _Spec("Policy loss", "The clipped surrogate.", {"policy/loss": "loss"}),
    _Spec("Gradient norms", "Before clipping.", {"policy/grad_norm": "policy", "prm/grad_norm": "PRM"}),
)
_DATA = (
    _Spec(
        "What the filter did",
        "Prompts per step, by filter status.",
        {
            "filter/kept": "kept",
            "filter/too_easy": "too easy",
            "filter/too_hard": "too hard",
            "filter/truncated": "truncated",
            "filter/undecided": "undecided",
        },
        "count",
        is_stacked=True,
    ),
    _Spec(
        "Verdicts",
        "Responses per step. Undecided ones are failures of the verifier and take no part in training.",
        {"verdict/correct": "correct", "verdict/wrong": "wrong", "verdict/undecided": "undecided"},
        "count",
        is_stacked=True,
    ),
    _Spec(
        "Cut at the token limit",
        "Share of sampled responses that did not come to an end.",
        {"response/truncated": "truncated"},
        "share",
    ),
)


_CLUSTER = (
    _Spec(
        "Idle processes",
        "Share of each step in which these processes, in the mean, had nothing to do.",
        {"idle/trainer": "trainer", "idle/sampler": "sampler", "idle/verifier": "verifier"},
        "share",
        bounds=(0, 1),
    ),
)


def sections(log: RunLog) -> tuple[Section, ...]:
    """The training curves in reading order."""
    if log.manifest.get("kind") == OFFLINE_PRM:
        lead = "Does the PRM learn from labels of whole responses? Batches are judged before it learns from them."
        held_out = replace(
            _evaluation_spec(log),
            title="Does it tell held-out responses apart?",
            caption="The same measures on responses to prompts that are never learnt from.",
            rules={"chance": 0.5},
        )
        return (_section(log, "Learning", lead, (_PRM[0], held_out, *_OFFLINE_PRM, *_PRM[2:])),)
    if log.is_supervised:
        return (_section(log, "Learning", "Do the given responses become likely?", _SUPERVISED),)
    if log.is_outcome_only:
        prm_lead = "This run trained on outcomes alone (prm: null): there is no process reward model to show."
    elif log.custom_prm:
        prm_lead = f"A function pays the process rewards: {log.custom_prm}. There is no model to show."
    else:
        prm_lead = "The process reward model learns online, from outcomes alone."
    learning = (*_LEARNING, _evaluation_spec(log), *_source_specs(log))
    cluster = _section(log, "Cluster", "Who waited for whom?", _CLUSTER)
    return (
        _section(log, "Learning", "Are more responses right than at the start?", learning),
        _section(log, "Process reward model", prm_lead, () if log.is_outcome_only or log.custom_prm else _PRM),
        _section(log, "Policy", "The health of the optimisation.", _POLICY),
        _section(log, "Data", "What was sampled and what was used.", _DATA),
        # Only a run whose roles are processes knows which were idle.
        *([cluster] if cluster.charts else []),
    )


def _evaluation_spec(log: RunLog) -> _Spec:
    keys = sorted({key for m in log.metrics for key in m if key.startswith("eval/") and key.count("/") == 1})
    return _Spec(
        "Held-out accuracy",
        "Evaluations on problems that are never trained on; step 0 is the model before training.",
        {key: key.removeprefix("eval/") for key in keys},
        "share",
        bounds=(0, 1),
    )


def _source_specs(log: RunLog) -> list[_Spec]:
    """One chart per outcome that is on record by source: `NAME/SOURCE`."""
    titles = {
        "outcome/mean": "Outcome of sampled responses by source",
        "eval/greedy": "Held-out accuracy by source, greedy",
        "eval/sampled": "Held-out accuracy by source, sampled",
    }
    specs: list[_Spec] = []
    for name, title in titles.items():
        keys = sorted({key for m in log.metrics for key in m if key.startswith(f"{name}/")})
        if keys:
            labels = {key: key.removeprefix(f"{name}/") for key in keys}
            specs.append(_Spec(title, "The mean outcome of each source of problems.", labels, "share", bounds=(0, 1)))
    return specs


def _section(log: RunLog, title: str, lead: str, specs: Sequence[_Spec]) -> Section:
    drawn = {spec.title: _chart(log, spec) for spec in specs}
    return Section(
        title=title,
        lead=lead,
        charts=tuple(chart for chart in drawn.values() if chart),
        missing=tuple(title for title, chart in drawn.items() if chart is None),
    )


def _chart(log: RunLog, spec: _Spec) -> Chart | None:
    rows = [m for m in log.metrics if any(key in m for key in spec.keys)]
    if not rows:
        return None
    recorded = {key: label for key, label in spec.keys.items() if any(key in m for m in rows)}
    kind = "points" if any(key.startswith("eval/") for key in recorded) else "line"
    return Chart(
        title=spec.title,
        caption=spec.caption,
        unit=spec.unit,
        steps=tuple(int(m["step"]) for m in rows),
        series=(
            *(Series(label, tuple(m.get(key) for m in rows), kind) for key, label in recorded.items()),
            *(Series(label, (value,) * len(rows), "rule") for label, value in (spec.rules or {}).items()),
        ),
        is_stacked=spec.is_stacked,
        bounds=spec.bounds,
    )


# --- time --------------------------------------------------------------------------------------------------------

_PHASES = ("sample", "verify", "reference", "prm", "policy", "sync")
OTHER = "other"


@dataclass(frozen=True, slots=True)
class TimeShare:
    """How much of the run one phase took."""

    phase: str
    seconds: float
    share: float


def time_shares(log: RunLog) -> tuple[TimeShare, ...]:
    """Seconds per phase over the whole run, evaluations included, the known phases first."""
    totals = {phase: sum(_phase_seconds(m, phase) for m in log.metrics) for phase in _phases(log)}
    whole = sum(totals.values())
    return tuple(TimeShare(phase, seconds, seconds / whole) for phase, seconds in totals.items() if seconds > 0)


def time_chart(log: RunLog) -> Chart | None:
    """Seconds per phase of each step, stacked. Evaluations stand beside the steps and are left to the table."""
    rows = [m for m in log.metrics if _phase_keys(m)]
    phases = [phase for phase in _phases(log) if phase != "evaluate"]
    if not rows or not phases:
        return None
    beside = " Responses are sampled meanwhile; collect is the wait for them." if "collect" in phases else ""
    return Chart(
        title="Seconds per step",
        caption=f"By phase; evaluations are left out here and counted in the table.{beside}",
        unit="seconds",
        steps=tuple(int(m["step"]) for m in rows),
        series=tuple(Series(phase, tuple(_phase_seconds(m, phase) for m in rows)) for phase in phases),
        is_stacked=True,
    )


def _phases(log: RunLog) -> list[str]:
    found = {key.removeprefix("time/") for m in log.metrics for key in _phase_keys(m)}
    found |= {"evaluate"} if any("time/evaluate" in m for m in log.metrics) else set()
    known = [phase for phase in _PHASES if phase in found]
    extra = sorted(found - set(known) - {"evaluate"})
    rest = [OTHER] if any(_phase_seconds(m, OTHER) for m in log.metrics) else []
    return [*known, *extra, *rest, *(["evaluate"] if "evaluate" in found else [])]


def _phase_seconds(metrics: Mapping[str, float], phase: str) -> float:
    if phase != OTHER:
        return metrics.get(f"time/{phase}", 0.0)
    return max(0.0, metrics.get("time/step", 0.0) - sum(metrics[key] for key in _phase_keys(metrics)))


def _phase_keys(metrics: Mapping[str, float]) -> list[str]:
    """The phases that add up to a step. What goes on during another phase is not one of them: grading during sampling;
    and all of sampling, where it has a thread of its own."""
    left_out = {"step", "evaluate", "verify_overlapped", "prm_hidden"}
    if "time/collect" in metrics:
        left_out |= {"sample", "verify", "sync", "sampler_waited"}
    return [key for key in metrics if key.startswith("time/") and key.removeprefix("time/") not in left_out]


# --- every number ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Range:
    """One metric over the run."""

    key: str
    first: float
    last: float
    low: float
    high: float


def ranges(log: RunLog) -> tuple[Range, ...]:
    """First, last, lowest and highest value of everything recorded."""
    keys: Iterable[str] = sorted({key for m in log.metrics for key in m} - {"step"})
    columns = {key: [value for _, value in log.column(key)] for key in keys}
    return tuple(Range(key, c[0], c[-1], min(c), max(c)) for key, c in columns.items())
