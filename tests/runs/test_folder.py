import json
from errno import EDQUOT, ENOENT, ENOSPC
from pathlib import Path

import pytest

from fakes import tiny_config
from priml.config.load import load_config
from priml.config.train import TrainConfig
from priml.errors import RunError, UsageError
from priml.factories.device import resolve_device
from priml.models.tiny import character_tokenizer
from priml.runs.folder import check_manifest, check_unused, create_run_dir, explain_full_disk, is_disk_full, versions


def claimed(tmp_path, warm_model, *overrides):
    cfg = tiny_config(tmp_path, warm_model, *overrides)
    cfg.run_dir.mkdir()
    create_run_dir(
        cfg,
        cfg.run_dir,
        resolve_device(cfg.backend).device_facts,
        character_tokenizer(),
        command="train",
        seed=0,
        data={"train": "d1"},
        weights={"policy": "w1"},
    )
    return cfg


def test_a_claimed_folder_is_refused_with_the_way_on(tmp_path, warm_model):
    folder = claimed(tmp_path, warm_model).run_dir
    with pytest.raises(UsageError, match="already holds a run; try this; or choose another run_dir, or remove"):
        check_unused(folder, hint="try this; or ")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="cannot be made a folder"):
            check_unused(place)


def test_an_empty_or_new_folder_is_free(tmp_path):
    check_unused(tmp_path)
    check_unused(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_the_resolved_settings_read_back_with_paths_that_work_from_anywhere(tmp_path, warm_model, monkeypatch):
    monkeypatch.chdir(warm_model.parent)
    cfg = claimed(tmp_path, "model", "prm.init=model", "data.train={kind: file, path: not/there.jsonl}")
    back = load_config(TrainConfig, cfg.run_dir / "config.yaml")
    assert back.policy.model == back.prm.init == str(warm_model)
    assert back.data.train.path == Path("not/there.jsonl")
    assert back.verify.function == f"{tmp_path / 'judge.py'}:grade"
    assert back.model_copy(update={"policy": cfg.policy, "prm": cfg.prm}) == cfg


def test_hub_ids_stay_as_they_are(tmp_path):
    cfg = claimed(tmp_path, "org/model-7b")
    assert load_config(TrainConfig, cfg.run_dir / "config.yaml").policy.model == "org/model-7b"


def test_the_manifest_guards_data_and_weights(tmp_path, warm_model):
    folder = claimed(tmp_path, warm_model).run_dir
    check_manifest(folder, data={"train": "d1"}, weights={"policy": "w1"})
    with pytest.raises(UsageError, match=r"the data \(train\) .* \(sha256 d2, recorded d1\)"):
        check_manifest(folder, data={"train": "d2"}, weights={"policy": "w1"})
    with pytest.raises(UsageError, match=r"the initial weights \(policy\)"):
        check_manifest(folder, data={"train": "d1"}, weights={"policy": "w2"})
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"manifest\.json is missing"):
        check_manifest(folder, data={}, weights={})


def test_the_manifest_says_what_ran_where(tmp_path, warm_model):
    manifest = json.loads((claimed(tmp_path, warm_model).run_dir / "manifest.json").read_text())
    assert set(manifest) == {"created", "command", "versions", "host", "device", "seed", "sha256", "kind", "isolation"}
    assert manifest["versions"] == versions()
    assert manifest["device"]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(ENOSPC, "full"), True),
        (OSError(EDQUOT, "quota"), True),
        (Exception("No space left on device (os error 28)"), True),
        (Exception("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"), True),
        (OSError(ENOENT, "missing"), False),
        (Exception("os error 280"), False),
    ],
)
def test_a_full_disk_is_recognised_whoever_reports_it(error, is_full):
    assert is_disk_full(error) is is_full


def test_a_full_disk_becomes_a_message_and_other_errors_pass(tmp_path):
    with (
        pytest.raises(RunError, match=r"no space left on the disk \(\d+\.\d\d GiB free\); make room, then rest"),
        explain_full_disk(tmp_path, lambda: "rest"),
    ):
        raise OSError(ENOSPC, "full")
    with pytest.raises(OSError, match="missing"), explain_full_disk(tmp_path, lambda: "rest"):
        raise OSError(ENOENT, "missing")
