"""Bad input through the real command line: the exit code, and a message that names place, value, need and next move."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from priml.models.tiny import character_tokenizer, tiny_model

Settings = dict[str, Any]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD, NO_ANSWER = {"problem": "1+1=", "answer": "2"}, {"problem": "1+2="}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stepz=3"], ["stepz: unknown key", "did you mean 'steps'"]),
        (["steps=many"], ["steps: found 'many' (text), need an integer"]),
        (["sampling.group_size=1"], ["sampling.group_size: rloo", "got group_size=1", "set sampling.group_size >= 2"]),
        (["filter.low=0.9", "filter.high=0.1"], ["filter: need low <= high, got low=0.9, high=0.1; swap them"]),
        (["verify.kind=maths"], ["verify.kind: found 'maths'", "did you mean 'math'"]),
    ],
)
def test_bad_settings_are_refused_before_the_run_folder_is_made(
    priml, write, training: Settings, tmp_path: Path, overrides: list[str], said: list[str]
):
    result = priml("train", write("c.yaml", training), *overrides)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"priml: {tmp_path}/c.yaml: ")
    assert all(part in result.err for part in said), result.err
    assert not (tmp_path / "run").exists()


def test_a_missing_data_file_is_named(priml, write, training: Settings):
    training["data"] = {"train": {"kind": "file", "path": "none.jsonl"}}
    result = priml("train", write("c.yaml", training))
    assert result.code == 2
    assert "no such data file: none.jsonl" in result.err
    assert "check the path" in result.err


def test_an_empty_data_file_is_named(priml, write, training: Settings, tmp_path: Path):
    training["data"] = {"train": {"kind": "file", "path": str(lines(tmp_path / "empty.jsonl"))}}
    result = priml("train", write("c.yaml", training))
    assert result.code == 2
    assert f"{tmp_path}/empty.jsonl is empty: found no rows, needed at least one problem" in result.err


def test_a_row_without_an_answer_is_named_by_its_line(priml, write, training: Settings, tmp_path: Path):
    data = lines(tmp_path / "rows.jsonl", GOOD, "", NO_ANSWER)
    training["data"] = {"train": {"kind": "file", "path": str(data)}}
    result = priml("train", write("c.yaml", training))
    assert result.code == 2
    assert f"{data}:3: no answer: needed a value in answer, found values in problem" in result.err
    assert "on_bad_row: skip" in result.err


def test_rows_without_an_answer_are_left_out_when_the_user_says_so(priml, write, training: Settings, tmp_path: Path):
    data = lines(tmp_path / "rows.jsonl", GOOD, NO_ANSWER, GOOD)
    training["data"] = {"train": {"kind": "file", "path": str(data), "on_bad_row": "skip"}}
    result = priml("train", write("c.yaml", training))
    assert result.code == 0, result.err
    assert f"{data}: skipped 1 bad rows, the first at 2: no answer" in result.err


def test_a_tokenizer_without_eos_is_refused(priml, write, training: Settings, tmp_path: Path):
    folder = tmp_path / "model"
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    training["policy"] = {"model": str(folder)}
    result = priml("train", write("c.yaml", training))
    assert result.code == 2
    assert f"{folder}: the tokenizer has no EOS token" in result.err
    assert "set `eos_token` in its tokenizer_config.json" in result.err


@pytest.mark.parametrize("place", ["policy.model", "prm.init"])
def test_a_folder_that_is_no_model_is_refused(priml, write, training: Settings, tmp_path: Path, place: str):
    (tmp_path / "not-a-model").mkdir()
    result = priml("train", write("c.yaml", training), f"{place}={tmp_path}/not-a-model")
    assert result.code == 2
    assert f"{tmp_path}/not-a-model: not a model folder (no config.json in it)" in result.err


def test_a_model_folder_that_does_not_exist_is_refused(priml, write, training: Settings, tmp_path: Path):
    result = priml("train", write("c.yaml", training), f"policy.model={tmp_path}/none")
    assert result.code == 2
    assert f"{tmp_path}/none: no such model folder; give a Hugging Face folder or a Hub id" in result.err


def test_a_prm_of_another_vocabulary_is_refused(priml, write, training: Settings, tmp_path: Path):
    folder = tmp_path / "prm"
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["more"])
    tiny_model(tokenizer, width=16, layers=1, heads=2, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    result = priml("train", write("c.yaml", training), f"prm.init={folder}")
    assert result.code == 2
    assert f"prm.init: {folder} and policy.model: " in result.err
    assert "different vocabularies" in result.err
    assert "'more'" in result.err
    assert "use prm.init: initial or a model of the same family" in result.err


@pytest.mark.parametrize("command", ["train", "sft", "eval"])
def test_a_run_folder_that_exists_is_never_overwritten(
    priml, write, training: Settings, model_folder: Path, tmp_path: Path, command: str
):
    task = training["data"]["train"]
    files = {
        "train": training,
        "sft": {"run_dir": "run", "model": {"kind": "pretrained", "model": str(model_folder)}, "data": task},
        "eval": {"run_dir": "run", "model": str(model_folder), "data": {"a": task}},
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    result = priml(command, write("c.yaml", files[command]))
    assert result.code == 2
    assert "run_dir: run already holds a run; " in result.err
    assert "choose another run_dir, or remove the folder" in result.err
    assert ("priml train run" in result.err) is (command == "train")
    assert (tmp_path / "run" / "config.yaml").read_text() == "mine"


def test_a_run_folder_below_a_file_is_refused(priml, write, training: Settings, tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = priml("train", write("c.yaml", training), "run_dir=file/run")
    assert result.code == 2
    assert "run_dir: file/run cannot be made a folder" in result.err
    assert "choose another run_dir" in result.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_without_permission_is_refused(priml, write, training: Settings, tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0o500)
    for run_dir in ("locked", "locked/run"):
        result = priml("train", write("c.yaml", training), f"run_dir={run_dir}")
        assert result.code == 2
        assert f"run_dir: {run_dir} " in result.err
        assert "choose another run_dir" in result.err


def test_a_folder_that_is_no_run_is_refused(priml, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    result = priml("train", "empty")
    assert result.code == 2
    assert "empty: not a run folder (no config.yaml in it); give a settings file or a run folder" in result.err


def test_a_resumed_run_takes_no_new_settings(priml, tmp_path: Path):
    (tmp_path / "run").mkdir()
    result = priml("train", "run", "steps=3")
    assert result.code == 2
    assert "run: a resumed run keeps its settings; drop steps=3" in result.err


def test_a_finished_run_is_not_resumed(priml, write, training: Settings):
    assert priml("train", write("c.yaml", training)).code == 0
    result = priml("train", "run")
    assert result.code == 2
    assert "run: this run is finished; look at it with: priml report run" in result.err


def test_a_settings_file_that_does_not_exist_is_refused(priml):
    result = priml("train", "none.yaml")
    assert result.code == 2
    assert result.err == "priml: none.yaml: cannot be read (no such file or directory); give the path of a YAML file\n"


def test_a_verifier_that_does_not_exist_is_refused(priml, write, training: Settings):
    training["verify"] = {"kind": "custom", "function": "nothing.py:grade"}
    result = priml("train", write("c.yaml", training))
    assert result.code == 2
    assert "verify.function: there is no file nothing.py" in result.err


def test_a_report_of_no_run_is_refused(priml, tmp_path: Path):
    result = priml("report", "none")
    assert result.code == 2
    assert "none" in result.err


@pytest.mark.parametrize("arguments", [[], ["train"], ["trian", "c.yaml"], ["train", "c.yaml", "--fast"]])
def test_wrong_usage_shows_how_to_use_it(priml: Callable[..., Any], arguments: list[str]):
    result = priml(*arguments)
    assert result.code == 2
    assert "usage: priml" in result.err
