import json
from pathlib import Path

from priml.config.alarms import Alarms
from priml.report.logs import read_run
from priml.report.settings import ALARMS, changed_settings, fired_alarms


def test_every_alarm_of_the_settings_has_a_meaning():
    assert set(ALARMS) == set(Alarms.model_fields)


def test_alarms_that_fired_are_told_with_their_steps(tmp_path: Path):
    rows = [{"step": 1}, {"step": 2, "alarm/length": 1}, {"step": 9, "alarm/length": 1, "alarm/process_factor": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert fired_alarms(read_run(tmp_path)) == [{"name": "length", "meaning": ALARMS["length"], "steps": [2, 9]}]


def test_settings_that_are_not_the_defaults_are_listed_by_their_dotted_names():
    given = {
        "policy": {"model": "m", "optimizer": {"lr": 3e-4}},
        "data": {"train": {"kind": "file", "path": "x.jsonl"}},
    }
    given |= {"run_dir": "runs/a", "filter": {"low": 0.2}}
    lines = changed_settings("train", given)
    assert "policy.optimizer.lr: 0.0003" in lines
    assert not any(line.startswith("filter.low") for line in lines), "0.2 is the default"


def test_settings_unknown_to_this_priml_are_listed_whole():
    assert changed_settings("train", {"gone": {"for": "good"}}) == ['gone.for: "good"']
