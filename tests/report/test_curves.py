import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from priml.report.curves import OTHER, ranges, sections, time_chart, time_shares
from priml.report.logs import RunLog, read_run

MakeRun = Callable[..., Path]


def _make_log(tmp_path: Path, *rows: str) -> RunLog:
    (tmp_path / "metrics.jsonl").write_text("".join(row + "\n" for row in rows))
    return read_run(tmp_path)


def test_the_curves_show_chance_and_ln_2_beside_the_prm(make_run: MakeRun):
    charts = {c.title: c for section in sections(read_run(make_run(steps=3))) for c in section.charts}
    rules = {s.label: s.values[0] for c in charts.values() for s in c.series if s.kind == "rule"}
    assert rules["chance"] == 0.5
    assert rules["ln 2"] == pytest.approx(math.log(2))
    assert [s.label for s in charts["PRM loss"].series] == ["loss", "ln 2"]


def test_evaluations_keep_their_own_steps(make_run: MakeRun):
    charts = {c.title: c for section in sections(read_run(make_run(steps=9))) for c in section.charts}
    chart = charts["Held-out accuracy"]
    assert chart.steps == (0, 4, 8)
    greedy, sampled = chart.series
    assert greedy.values[0] == 0.21
    assert sampled.values == (0.18, None, None)
    assert charts["Outcome of sampled responses"].steps == tuple(range(1, 10))


def test_outcomes_by_source_have_charts_of_their_own(tmp_path: Path):
    log = _make_log(
        tmp_path,
        '{"step": 0, "eval/greedy": 0.2, "eval/greedy/math": 0.1, "eval/greedy/code": 0.3}',
        '{"step": 1, "outcome/mean": 0.5, "outcome/mean/math": 0.4, "outcome/mean/code": 0.6}',
    )
    charts = {c.title: {s.label: s.values for s in c.series} for c in sections(log)[0].charts}
    assert charts["Held-out accuracy"] == {"greedy": (0.2,)}
    assert charts["Held-out accuracy by source, greedy"] == {"code": (0.3,), "math": (0.1,)}
    assert charts["Outcome of sampled responses by source"] == {"code": (0.6,), "math": (0.4,)}
    assert "Held-out accuracy by source, sampled" not in charts


def test_idle_processes_are_shown_where_roles_have_processes(tmp_path: Path):
    idle = {"idle/trainer": 0.6, "idle/sampler": 0.4, "idle/verifier": 0.9}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "outcome/mean": 0.5, **idle}) + "\n")
    cluster = sections(read_run(tmp_path))[-1]
    assert (cluster.title, [chart.title for chart in cluster.charts]) == ("Cluster", ["Idle processes"])
    assert {series.label: series.values for series in cluster.charts[0].series} == {
        "trainer": (0.6,),
        "sampler": (0.4,),
        "verifier": (0.9,),
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "outcome/mean": 0.5}) + "\n")
    assert "Cluster" not in [section.title for section in sections(read_run(tmp_path))]


def test_an_outcome_only_run_has_no_prm_charts_and_says_why(make_run: MakeRun):
    prm = next(s for s in sections(read_run(make_run(steps=3, prm=False))) if s.title == "Process reward model")
    assert prm.charts == ()
    assert prm.missing == ()
    assert "outcomes alone" in prm.lead


def test_what_was_not_recorded_is_listed_by_title(tmp_path: Path):
    found = {s.title: s for s in sections(_make_log(tmp_path, '{"step": 1, "policy/entropy": 0.5}'))}
    assert [c.title for c in found["Policy"].charts] == ["Entropy"]
    assert "PRM loss" in found["Process reward model"].missing


def test_time_adds_up_with_an_explicit_remainder(tmp_path: Path):
    log = _make_log(
        tmp_path,
        '{"step": 1, "time/policy": 2, "time/sample": 5, "time/verify_overlapped": 4, "time/step": 8}',
        '{"step": 2, "time/policy": 2, "time/sample": 4, "time/step": 6, "time/evaluate": 6}',
    )
    shares = {s.phase: (s.seconds, s.share) for s in time_shares(log)}
    assert list(shares) == ["sample", "policy", OTHER, "evaluate"]
    assert shares == {"sample": (9, 0.45), "policy": (4, 0.2), OTHER: (1, 0.05), "evaluate": (6, 0.3)}
    chart = time_chart(log)
    assert chart is not None
    assert {s.label: s.values for s in chart.series} == {"sample": (5, 4), "policy": (2, 2), OTHER: (1, 0)}


def test_what_goes_on_beside_training_is_no_part_of_a_step(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "time/step": 10, "time/collect": 2, "time/snapshot": 1, "time/policy": 4, "time/prm": 1, '
        '"time/prm_hidden": 1, "time/sample": 8, "time/verify": 3, "time/sync": 1, "time/sampler_waited": 2}\n'
    )
    log = read_run(tmp_path)
    shares = {share.phase: share.seconds for share in time_shares(log)}
    assert shares == {"collect": 2, "snapshot": 1, "policy": 4, "prm": 1, OTHER: 2}
    chart = time_chart(log)
    assert chart is not None
    assert "sampled meanwhile" in chart.caption


def test_no_times_no_chart(tmp_path: Path):
    log = _make_log(tmp_path, '{"step": 1, "policy/entropy": 0.5}')
    assert time_chart(log) is None
    assert time_shares(log) == ()


def test_ranges_cover_every_metric(tmp_path: Path):
    log = _make_log(tmp_path, '{"step": 1, "a": 3}', '{"step": 2, "a": 1, "b": 7}', '{"step": 3, "a": 2}')
    assert [(r.key, r.first, r.last, r.low, r.high) for r in ranges(log)] == [("a", 3, 2, 1, 3), ("b", 7, 7, 7, 7)]
