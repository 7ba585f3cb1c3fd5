import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import tiny_config
from priml.config.data import PromptFormat
from priml.config.load import load_config
from priml.config.train import TrainConfig
from priml.errors import UsageError
from priml.models.tiny import character_tokenizer
from priml.runs.folder import RunFolder
from priml.runs.manifest import Origin, changes_since, check_unchanged, create, dated, load_settings_to_resume, versions

ORIGIN = Origin("train", 0, {"train": "d1"}, {"policy": "w1"}, {"kind": "cpu", "precision": "fp32"})


def begun(tmp_path, warm_model, *overrides):
    cfg = tiny_config(tmp_path, warm_model, *overrides)
    cfg.run_dir.mkdir()
    folder = RunFolder(cfg.run_dir)
    create(folder, cfg, character_tokenizer(), ORIGIN, threads=1)
    return cfg, folder


def test_the_resolved_settings_read_back_with_paths_that_work_from_anywhere(tmp_path, warm_model, monkeypatch):
    monkeypatch.chdir(warm_model.parent)
    cfg, _ = begun(tmp_path, "model", "prm.init=model", "data.train={kind: file, path: not/there.jsonl}")
    back = load_config(TrainConfig, cfg.run_dir / "config.yaml")
    assert back.policy.model == back.prm.init == str(warm_model)
    assert back.data.train.path == Path("not/there.jsonl")
    assert back.verify.function == f"{tmp_path / 'judge.py'}:grade"
    assert back.model_copy(update={"policy": cfg.policy, "prm": cfg.prm}) == cfg


def test_hub_ids_stay_as_they_are(tmp_path):
    cfg, _ = begun(tmp_path, "org/model-7b")
    assert load_config(TrainConfig, cfg.run_dir / "config.yaml").policy.model == "org/model-7b"


def test_the_manifest_guards_data_and_weights(tmp_path, warm_model):
    _, folder = begun(tmp_path, warm_model)
    check_unchanged(folder, ORIGIN)
    with pytest.raises(UsageError, match=r"the data \(train\) .* \(sha256 d2, recorded d1\)"):
        check_unchanged(folder, replace(ORIGIN, data={"train": "d2"}))
    with pytest.raises(UsageError, match=r"the initial weights \(policy\)"):
        check_unchanged(folder, replace(ORIGIN, weights={"policy": "w2"}))
    folder.manifest.unlink()
    with pytest.raises(UsageError, match=r"manifest\.json is missing"):
        check_unchanged(folder, ORIGIN)


def test_the_manifest_says_what_ran_where(tmp_path, warm_model):
    manifest = json.loads(begun(tmp_path, warm_model)[1].manifest.read_text())
    assert set(manifest) == {
        *("format", "created", "command", "versions", "host", "device", "seed", "sha256", "kind", "isolation")
    }
    assert manifest["versions"] == versions()
    assert manifest["device"]["precision"] == "fp32"


def test_what_is_not_as_at_the_start_is_listed(tmp_path, warm_model):
    cfg, folder = begun(tmp_path, warm_model)
    assert changes_since(folder, threads=1) == []
    manifest = json.loads(folder.manifest.read_text())
    manifest["versions"]["torch"] = "2.0.0"
    folder.manifest.write_text(json.dumps(manifest))
    folder.config.write_text(folder.config.read_text().replace(f"steps: {cfg.steps}", "steps: 77"))
    assert changes_since(folder, threads=4) == [
        f"torch {versions()['torch']}, was 2.0.0",
        "threads 4, was 1",
        "config.yaml has been edited",
    ]


def test_a_folder_of_an_older_priml_is_refused_in_one_sentence(tmp_path, warm_model):
    _, folder = begun(tmp_path, warm_model)
    manifest = json.loads(folder.manifest.read_text())
    del manifest["format"]
    folder.manifest.write_text(json.dumps(manifest))
    said = r"has format 1 \(of priml 0\.1\), need format 2; finish the run with priml 0\.1, or start a new one$"
    with pytest.raises(UsageError, match=said):
        load_settings_to_resume(TrainConfig, folder, command="train")
    with pytest.raises(UsageError, match=said):
        check_unchanged(folder, ORIGIN)


def test_prompts_keep_the_day_of_the_run_that_made_the_model(tmp_path, warm_model):
    """A template that writes the date: no run changes its prompts at midnight, nor does what follows it."""
    today = datetime.date.today()
    assert dated(PromptFormat(), "org/model").date == dated(PromptFormat(), "").date == today
    assert dated(PromptFormat(date=datetime.date(2024, 7, 26)), "").date == datetime.date(2024, 7, 26)
    cfg, folder = begun(tmp_path, warm_model, "data.prompt.date=2026-02-03")
    assert dated(PromptFormat(), folder.model).date == cfg.data.prompt.date == datetime.date(2026, 2, 3)
    assert dated(PromptFormat(), str(folder.path / "prm")).date == datetime.date(2026, 2, 3)


def test_a_run_of_before_days_were_kept_has_that_of_its_start(tmp_path, warm_model):
    _, folder = begun(tmp_path, warm_model)
    manifest = json.loads(folder.manifest.read_text())
    folder.manifest.write_text(json.dumps(manifest | {"created": "2026-01-31T23:59:59Z"}))
    assert dated(PromptFormat(), folder.model).date == datetime.date(2026, 1, 31)
