"""The report of a run: one HTML file that needs no network and stays readable for as long as browsers read HTML."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import priml
from priml.files import write_whole
from priml.report.curves import ranges, sections, time_chart, time_shares
from priml.report.index import Query, RolloutIndex
from priml.report.inside import put_inside, strangest
from priml.report.logs import RunLog, read_run
from priml.report.patterns import paid_patterns
from priml.report.rollouts import Response, colour_limits, load_tokenizer, read_group
from priml.report.settings import changed_settings, fired_alarms
from priml.report.trust import trust_card

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_WATERFALLS = 40
"""Steps whose spans go into the page, evenly spread."""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    What is missing or damaged is said on the page.

    Raises:
        UsageError: the folder is not one of a run.
    """
    log = read_run(run_dir)
    write_whole(log.folder.report, render(report_data(log)))
    return log.folder.report


def report_data(log: RunLog, index: RolloutIndex | None = None) -> dict[str, Any]:
    """Everything the page shows, fit for JSON. With an `index`, rows and responses stay on the server that has it."""
    headline, details = findings(log)
    chart = time_chart(log)
    rollouts = None if log.is_supervised else _rollouts(log, index)
    return {
        "title": log.folder.path.resolve().name,
        "headline": headline,
        "details": details,
        "is_supervised": log.is_supervised,
        "alarms": fired_alarms(log),
        "settings": changed_settings(str(log.manifest.get("kind")), log.config),
        "facts": list(_facts(log)),
        "notes": [*log.notes, *(rollouts["notes"] if rollouts else [])],
        "accuracy": _accuracy(log),
        "sections": [asdict(section) for section in sections(log)],
        "time": {
            "chart": asdict(chart) if chart else None,
            "shares": [asdict(share) for share in time_shares(log)],
            "waterfalls": _waterfalls(log),
        },
        "table": rollouts,
        "ranges": [asdict(item) for item in ranges(log)],
        "written": f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by priml {priml.__version__}",
    }


def _rollouts(log: RunLog, served: RolloutIndex | None) -> dict[str, Any]:
    """The table of all rollouts, and the strangest of them."""
    index = served or RolloutIndex(log.folder.rollouts(0).parent)
    index.refresh()
    tokenizer = load_tokenizer(log.folder.tokenizer / "tokenizer.json")
    card = trust_card(index.table, log.config)
    patterns = None if served else paid_patterns(log.rollouts, tokenizer)
    strange = strangest(index, log.folder, tokenizer)
    no_tokenizer = "There is no readable tokenizer/tokenizer.json: tokens are shown by number, the text above them."
    return {
        "notes": [*index.notes, *([no_tokenizer] if index.table.num_rows and tokenizer is None else [])],
        "total": index.table.num_rows,
        "steps": len(log.rollouts),
        "statuses": sorted({status for status in index.table["filter_status"].to_pylist() if status}),
        "strange": [asdict(response) for response in strange],
        "limits": colour_limits([*strange, *_last_kept(log, index, tokenizer)]),
        "is_outcome_only": log.is_outcome_only,
        "trust": asdict(card) if card else None,
        "patterns": asdict(patterns) if patterns else None,
        "run": str(log.folder),
        "inside": None if served else asdict(put_inside(index, log.folder, tokenizer, _short)),
    }


def _last_kept(log: RunLog, index: RolloutIndex, tokenizer: Tokenizer | None) -> list[Response]:
    """Some of the last kept responses, for a colour scale that fits all."""
    rows = index.find(Query(filter_status="kept", size=16)).rows
    by_step: dict[int, list[int]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row["row"])
    found = [read_group(log.folder.rollouts(step), of_step, tokenizer) for step, of_step in by_step.items()]
    return [response for group in found for response in group]


PARTS = ("base", "charts", "head", "time", "tokens", "source", "table", "tree", "trust", "live", "main")
"""The scripts of the page, in the order in which they are joined."""


def render(data: Mapping[str, Any], *, connect: str = "'none'") -> str:
    """The page. Data travels as inert JSON and only ever becomes text nodes: what a model wrote stays text.

    `connect` is what the page may ask for data: nothing, or the server that it came from (`'self'`).
    """
    vendor = files("priml.report") / "vendor"
    assets = files("priml.report") / "assets"
    licences = [(vendor / f"{name}.LICENSE").read_text(encoding="utf-8") for name in ("uPlot", "tabulator")]
    libraries = [(vendor / name).read_text(encoding="utf-8") for name in ("uPlot.iife.min.js", "tabulator.min.js")]
    parts = [(assets / f"{name}.js").read_text(encoding="utf-8") for name in PARTS]
    comments = [f"/*\n{licence}\n*/" for licence in licences]
    script = "\n".join([*comments, *libraries, "(() => {", '"use strict";', *parts, "})();"])
    styles = [vendor / "uPlot.min.css", vendor / "tabulator.min.css", assets / "style.css"]
    style = "\n".join(path.read_text(encoding="utf-8") for path in styles)
    return Template((assets / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(str(data["title"])),
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'",
        style=style,
        data=inert_json(data),
        script=script,
    )


def _hash(source: str) -> str:
    """A source for the Content-Security-Policy that allows this text inline, and nothing else."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def inert_json(data: Mapping[str, Any]) -> str:
    """JSON that ends no script element, with numbers as short as they are read."""
    text = json.dumps(_short(data), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Inside a script element only `<` can end it or open a comment. The line separators are for older parsers.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    # A model can emit half of a surrogate pair, which has no UTF-8 form.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _short(value: object) -> object:
    """The same data with floats at six digits: nobody reads more, and the page is half the size."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value


# --- what the run says, in words ---------------------------------------------------------------------------------


def findings(log: RunLog) -> tuple[str, list[str]]:
    """One sentence on how the run went, and a few that qualify it."""
    planned = log.config.get("steps")
    details: list[str] = []
    compared = [row for row in _accuracy(log) if row["before"] and row["after"]]
    if compared:
        headline = _change(compared[0])
        details.append(_certainty(compared[0]))
        details += [_change(row) + "." for row in compared[1:2]]
    elif not log.metrics:
        return "Nothing was recorded yet", []
    else:
        headline = _progress(log)
    if isinstance(planned, int) and log.steps_done < planned:
        details.append(f"Step {log.steps_done} of {planned} is the last on record.")
    details += _prm_findings(log)
    undecided = sum(value for _, value in log.column("verdict/undecided"))
    if undecided:
        some = "1 verdict was" if undecided == 1 else f"{undecided:,.0f} verdicts were"
        details.append(f"{some} undecided: a failure of the verifier, left out of training.")
    return headline, details


def _change(row: Mapping[str, Any]) -> str:
    before, after = row["before"]["mean"], row["after"]["mean"]
    verb = "stayed at" if before == after else "rose from" if after > before else "fell from"
    if before == after:
        return f"{row['name']} accuracy {verb} {_percent(before)}"
    return (
        f"{row['name']} accuracy {verb} {_percent(before)} to {_percent(after)} ({100 * (after - before):+.1f} points)"
    )


def _certainty(row: Mapping[str, Any]) -> str:
    before, after = row["before"], row["after"]
    on = f"Measured on {after['n']:,} held-out problems" if after["n"] else "Measured on held-out problems"
    if before["low"] is None or after["low"] is None:
        return f"{on}; no intervals were recorded."
    if before["high"] < after["low"] or after["high"] < before["low"]:
        return f"{on}; the 95\N{NO-BREAK SPACE}% intervals do not overlap."
    return f"{on}; the 95\N{NO-BREAK SPACE}% intervals overlap, so the difference may be chance."


def _progress(log: RunLog) -> str:
    for key, name in (("eval/greedy", "Greedy held-out accuracy"), ("outcome/mean", "The mean outcome")):
        values = log.column(key)
        if len(values) > 1:
            (first_step, first), (last_step, last) = values[0], values[-1]
            start = f"{_percent(first)} (step\N{NO-BREAK SPACE}{first_step})"
            return f"{name} went from {start} to {_percent(last)} (step\N{NO-BREAK SPACE}{last_step})"
    areas = log.column("eval/auc") or log.column("prm/auc")
    if areas and log.is_supervised:
        where = "held-out responses" if log.column("eval/auc") else "fresh responses"
        return f"The PRM tells right from wrong {where} with an AUC of {areas[-1][1]:.3f} after {areas[-1][0]} steps"
    losses = [loss for _, loss in log.column("sft/loss")]
    if len(losses) > 1:
        return f"The loss per response token went from {losses[0]:.3g} to {losses[-1]:.3g} in {log.steps_done} steps"
    return f"{log.steps_done} steps on record; too early to say more"


def _prm_findings(log: RunLog) -> list[str]:
    if log.is_outcome_only:
        return ["Trained on outcomes alone, without a process reward model."]
    last = [value for _, value in log.column("prm/pair_accuracy")][-10:]
    if not last:
        return []
    mean = sum(last) / len(last)
    over = f"over the last {len(last)} steps" if len(last) > 1 else "in the only step"
    sentence = f"The PRM put right above wrong in {_percent(mean)} of the pairs of fresh responses {over}"
    loss = [value for _, value in log.column("prm/loss")][-10:]
    if len(last) > 2 and mean + 2 * statistics.stdev(last) / math.sqrt(len(last)) < 0.5:
        return [f"{sentence}: worse than chance. Its rewards pushed the wrong way."]
    if mean < 0.5:
        worse = ", and its loss is above ln 2" if loss and sum(loss) / len(loss) > math.log(2) else ""
        return [f"{sentence}: no better than chance{worse}. Its rewards did not help."]
    return [f"{sentence} (chance: 50\N{NO-BREAK SPACE}%)."]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


# --- tables ------------------------------------------------------------------------------------------------------


def _accuracy(log: RunLog) -> list[dict[str, Any]]:
    """Before and after, per kind of decoding, greedy first."""
    accuracy = log.summary.get("accuracy")
    if not isinstance(accuracy, Mapping):
        return []
    before, after = (_flat_scores(accuracy.get(when)) for when in ("before", "after"))
    return [{"name": name, "before": before.get(name), "after": after.get(name)} for name in {**before, **after}]


def _flat_scores(scores: object) -> dict[str, dict[str, Any]]:
    if not isinstance(scores, Mapping):
        return {}
    named = {"Greedy": scores.get("greedy"), "Sampled": scores.get("sampled")}
    pass_at = scores.get("pass_at")
    if isinstance(pass_at, Mapping):  # pass@1 is the sampled mean
        named |= {f"pass@{k}": score for k, score in pass_at.items() if str(k) != "1"}
    return {
        name: {key: score.get(key) for key in ("mean", "low", "high", "n")}
        for name, score in named.items()
        if isinstance(score, Mapping) and isinstance(score.get("mean"), int | float)
    }


def _facts(log: RunLog) -> Iterator[tuple[str, str]]:
    """Label and value, in reading order; what is unknown is left out."""
    config, manifest, summary = log.config, log.manifest, log.summary
    if created := manifest.get("created"):
        yield "Started", str(created).replace("T", " ")[:16]
    if model := _at(config, "policy", "model"):
        yield "Policy", str(model)
    elif model := config.get("model"):
        yield "Model", _plain(model)
    planned = config.get("steps")
    yield "Steps", f"{log.steps_done}" + (f" of {planned}" if planned is not None else "")
    seed = summary.get("seed", config.get("seed", manifest.get("seed")))
    if seed is not None:
        yield "Seed", str(seed)
    if estimator := _at(config, "advantage", "estimator"):
        yield "Estimator", f"{estimator}, preset {_at(config, 'advantage', 'preset')}"
    yield from _prm_facts(log)
    if prompts := _at(config, "batch", "prompts"):
        yield "Batch", f"{prompts} prompts × {_at(config, 'sampling', 'group_size')} responses"
    seconds = summary.get("seconds") or sum(value for _, value in log.column("time/step"))
    if seconds:
        yield "Training time", _duration(seconds)
    for kind in ("sampled", "trained"):
        count = _at(summary, "tokens", kind) or sum(value for _, value in log.column(f"tokens/{kind}"))
        if count:
            yield f"Tokens {kind}", f"{int(count):,}"
    versions = summary.get("versions") or manifest.get("versions")
    if isinstance(versions, Mapping):
        yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    for key in ("host", "device"):
        if value := manifest.get(key):
            yield key.capitalize(), value if isinstance(value, str) else _plain(value)


def _prm_facts(log: RunLog) -> Iterator[tuple[str, str]]:
    if log.is_outcome_only:
        yield "PRM", "none (outcomes only)"
    elif log.custom_prm:
        yield "PRM", f"custom: {log.custom_prm}"
    elif isinstance(prm := log.config.get("prm"), Mapping):
        parts = [f"{name} {prm[name]}" for name in ("init", "reference", "forward", "granularity") if name in prm]
        yield "PRM", ", ".join(parts)
        used = [value for _, value in log.column("prm/beta")][-1:]
        beta = prm.get("beta")
        yield "beta", f"{beta} ({used[0]:.4g})" if used and beta == "auto" else str(beta)


def _at(mapping: Mapping[str, Any], *path: str) -> Any:
    value: Any = mapping
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"


def _waterfalls(log: RunLog) -> dict[str, list[dict[str, Any]]]:
    """Spans of evenly spread steps, first and last among them."""
    steps = [step for step in log.spans if step > 0] or list(log.spans)
    if len(steps) > MAX_WATERFALLS:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_WATERFALLS - 1))] for i in range(MAX_WATERFALLS)]
    return {str(step): [asdict(span) for span in log.spans[step]] for step in steps}
