import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.config.load import parse_config
from priml.config.schedule import CustomTracker
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.factories.trackers import build_tracker
from priml.runs.schemas import ROLLOUTS

HOSTILE = "<script>alert(1)</script> | a\n# title\x1b[31m"


def test_a_tracker_without_its_methods_is_refused_before_the_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class T:\n    def __init__(self, folder): pass\n    def log(self, metrics): pass\n")
    with pytest.raises(UsageError, match=r"mine\.py:T returned T without a method 'close'"):
        build_tracker(CustomTracker(kind="custom", function=f"{path}:T"), tmp_path, {})


def test_a_tracker_that_fails_is_reported_once_and_ends_no_run(tmp_path, caplog):
    path = tmp_path / "flaky.py"
    path.write_text(
        "class T:\n    def __init__(self, folder): pass\n"
        "    def log(self, metrics):\n        raise ConnectionError('no network')\n"
        "    def close(self): raise SystemExit(3)\n"
    )
    tracker = build_tracker(CustomTracker(kind="custom", function=f"{path}:T"), tmp_path, {})
    for step in (1, 2):
        tracker.log({"step": step})
    tracker.close()
    [record] = caplog.records
    assert "flaky.py:T fails: ConnectionError: no network" in record.message
    assert "line 4" in record.message


def read_settings(text, run_dir):
    given = {"run_dir": str(run_dir), "policy": {"model": "m"}, "data": {"train": "chain"}, "trackers": [text]}
    cfg = parse_config(TrainConfig, given, where="")
    return cfg.trackers[0], cfg.model_dump(mode="json")


@pytest.fixture
def run_dir(tmp_path):
    """A run with two steps on record, the second with rollouts."""
    folder = tmp_path / "mine"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"created": "now"}))
    rows = [dict.fromkeys(ROLLOUTS.names) | {"step": 2, "sample": i, "response": HOSTILE} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUTS), folder / "rollouts" / "000002.parquet")
    return folder


@pytest.mark.parametrize("kind", ["trackio", "wandb", "tensorboard", "mlflow"])
def test_a_service_whose_package_is_missing_is_refused_with_what_to_type(run_dir, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    settings, run = read_settings(kind, run_dir)
    with pytest.raises(UsageError, match=rf"needs the package {kind}.*pip install 'priml\[{kind}\]'"):
        build_tracker(settings, run_dir, run)


def log_two_steps(text, run_dir):
    settings, run = read_settings(text, run_dir)
    tracker = build_tracker(settings, run_dir, run)
    for step in (1, 2):
        tracker.log({"step": step, "outcome/mean": step / 4, "digest/policy": "abc"})
    tracker.close()


def test_tensorboard_has_the_numbers_and_the_rollouts_as_text(run_dir, caplog):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_two_steps({"kind": "tensorboard", "table_every": 2}, run_dir)
    assert not caplog.records
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("outcome/mean")] == [(1, 0.25), (2, 0.5)]
    (text,) = events.Tensors("rollouts/text_summary")
    written = text.tensor_proto.string_val[0].decode()
    assert written.count("response: <script>") == 64
    assert "\n    response: # title" in written, "in an indented block it is no Markdown"


def test_mlflow_has_numbers_and_settings_in_one_run_also_after_an_interruption(run_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # in place of a server
    mlflow = pytest.importorskip("mlflow")
    uri = str(tmp_path / "mlruns")
    text = {"kind": "mlflow", "uri": uri, "table_every": None}
    log_two_steps(text, run_dir)
    log_two_steps(text, run_dir)
    assert not caplog.records
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("priml").experiment_id])
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["outcome/mean"] == 0.5
    assert run.data.params["policy.optimizer.lr"] == "5e-07"


def test_trackio_has_the_numbers_and_the_rollouts(run_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    log_two_steps({"kind": "trackio", "table_every": 2}, run_dir)
    assert not caplog.records
    assert list((tmp_path / "trackio").rglob("priml*"))


def test_wandb_gets_them_offline(run_dir, monkeypatch, caplog):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_two_steps({"kind": "wandb", "table_every": 2}, run_dir)
    assert not caplog.records
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))
