"""The curves of a report, its times, and every recorded number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from priml.report.logs import OFFLINE_PRM, RunLog

Unit = Literal["share", "number", "count", "seconds"]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart, or one layer of a stacked one."""

    label: str
    values: tuple[float | None, ...]
    """One per step of the chart; None where nothing was recorded."""
    kind: Literal["line", "points", "rule"] = "line"
    """`points` marks sparse measurements; `rule` is a constant to compare with, drawn dashed."""
    key: str | None = None
    """The metric that it shows, for a page that goes on while a run does; None where it is more than one."""


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
        "the process weight. Steps in which it pays exactly 0, as the first one can, are left out.",
        {"prm/accuracy": "accuracy", "prm/auc": "AUC", "prm/pair_accuracy": "pair accuracy", "prm/trust": "trust"},
        rules={"chance": 0.5},
        bounds=(0, 1),
    ),
    _Spec(
        "PRM loss",
        "On fresh responses, before the PRM learns from them. One that knows nothing has ln 2 (a likelihood: 0). Fresh "
        "responses differ from those that it has learnt from, so early values are often above. Only together with a "
        "pair accuracy at chance does a lasting value above it mean that it has gone wrong.",
        {"prm/loss": "loss"},
        rules={"ln 2": math.log(2)},
    ),
    _Spec(
        "Mean score of a response",
        "Summed process reward. Compared with the policy itself it is below 0 on average. Compared with frozen "
        "weights it moves as the policy does. A rise while the outcome does not rise is a sign of gaming (alarm "
        "process_return).",
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
    log = replace(log, metrics=tuple(_judged(row) for row in log.metrics))
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


def _judged(row: Mapping[str, float]) -> Mapping[str, float]:
    """Without what a PRM is worth in a step in which it equals its reference: all scores tie, and order decides."""
    if not (row.get("prm/reward_mean") == 0.0 and row.get("prm/accuracy") == 0.0):
        return row
    return {key: value for key, value in row.items() if key not in ("prm/accuracy", "prm/auc", "prm/pair_accuracy")}


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
            *(Series(label, tuple(m.get(key) for m in rows), kind, key) for key, label in recorded.items()),
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
        series=tuple(
            Series(
                phase, tuple(_phase_seconds(m, phase) for m in rows), key=None if phase == OTHER else f"time/{phase}"
            )
            for phase in phases
        ),
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
