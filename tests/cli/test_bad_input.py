"""Bad input through the real command line: the exit code, and a message that names place, value, need and next move."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from priml.graders.math.verifier import MathVerifier
from priml.models.tiny import character_tokenizer, tiny_model

Settings = dict[str, Any]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD, NO_ANSWER = {"problem": "1+1=", "answer": "2", "response": "2"}, {"problem": "1+2=", "response": "3"}

COMMANDS = ("train", "sft", "eval")
MODEL = {"train": "policy.model", "sft": "model.model", "eval": "model"}
"""Where each command's settings name the model."""
DATA = {"train": "data.train", "sft": "data", "eval": "data.a"}
"""And the problems."""


def from_file(path: object, **more: object) -> str:
    return json.dumps({"kind": "file", "path": str(path), **more})


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


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_keys_and_wrong_types_are_named_all_at_once(priml, write, settings: Settings, command: str):
    result = priml(command, write("c.yaml", settings[command]), "runn_dir=x", "seed=many")
    assert result.code == 2
    assert "runn_dir: unknown key; did you mean 'run_dir'?" in result.err
    assert "seed: found 'many' (text), need an integer" in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_data_file_is_named(priml, write, settings: Settings, tmp_path: Path, command: str):
    result = priml(command, write("c.yaml", settings[command]), f"{DATA[command]}={from_file('none.jsonl')}")
    assert result.code == 2
    assert "no such data file: none.jsonl" in result.err
    assert "check the path" in result.err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_data_file_is_named(priml, write, settings: Settings, tmp_path: Path, command: str):
    data = lines(tmp_path / "empty.jsonl")
    result = priml(command, write("c.yaml", settings[command]), f"{DATA[command]}={from_file(data)}")
    assert result.code == 2
    assert f"{data} is empty: found no rows, needed at least one problem" in result.err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "sft"])  # it needs none
def test_a_row_without_an_answer_is_named_by_its_line(priml, write, settings: Settings, tmp_path: Path, command: str):
    data = lines(tmp_path / "rows.jsonl", GOOD, "", NO_ANSWER)
    result = priml(command, write("c.yaml", settings[command]), f"{DATA[command]}={from_file(data)}")
    assert result.code == 2
    assert f"{data}:3: no answer: needed a value in answer, found values in problem" in result.err
    assert "on_bad_row: skip" in result.err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "sft"])  # it needs none
def test_rows_without_an_answer_are_left_out_when_the_user_says_so(
    priml, write, settings: Settings, tmp_path: Path, command: str
):
    data = lines(tmp_path / "rows.jsonl", GOOD, NO_ANSWER, GOOD)
    source = from_file(data, on_bad_row="skip")
    result = priml(command, write("c.yaml", settings[command]), f"{DATA[command]}={source}")
    assert result.code == 0, result.err
    assert f"{data}: skipped 1 bad rows, the first at 2: no answer" in result.err


def test_a_row_without_a_response_to_learn_is_named(priml, write, settings: Settings, tmp_path: Path):
    data = lines(tmp_path / "rows.jsonl", GOOD, {"problem": "1+2=", "answer": "3"})
    result = priml("sft", write("c.yaml", settings["sft"]), f"data={from_file(data)}")
    assert result.code == 2
    assert "no response to learn from; need a `response` or `solution` column" in result.err
    assert "data.columns: {response: COLUMN}" in result.err


def model_with(tokenizer: Any, folder: Path) -> Path:
    """A model of the usual vocabulary beside whatever tokenizer."""
    tiny_model(character_tokenizer(), width=16, layers=1, heads=2, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_without_eos_is_refused(priml, write, settings: Settings, tmp_path: Path, command: str):
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    folder = model_with(tokenizer, tmp_path / "model")
    result = priml(command, write("c.yaml", settings[command]), f"{MODEL[command]}={folder}")
    assert result.code == 2
    assert f"{folder}: the tokenizer has no EOS token" in result.err
    assert "set `eos_token` in its tokenizer_config.json" in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tokenizer_that_is_larger_than_the_model_is_refused(
    priml, write, settings: Settings, tmp_path: Path, command: str
):
    tokenizer: Any = character_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens(["=", "A"], special_tokens=True)  # would be letters of their own, beyond the model
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    folder = model_with(tokenizer, tmp_path / "model")
    result = priml(command, write("c.yaml", settings[command]), f"{MODEL[command]}={folder}")
    assert result.code == 2
    assert f"{folder}: the tokenizer writes '<|im_end|>' as token {rows}" in result.err
    assert f"embeddings for tokens 0 to {rows - 1} only; use the tokenizer that belongs to the weights" in result.err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(("command", "place"), [*MODEL.items(), ("train", "prm.init")])
def test_a_folder_that_is_no_model_is_refused(
    priml, write, settings: Settings, tmp_path: Path, command: str, place: str
):
    (tmp_path / "not-a-model").mkdir()
    result = priml(command, write("c.yaml", settings[command]), f"{place}={tmp_path}/not-a-model")
    assert result.code == 2
    assert f"{tmp_path}/not-a-model: not a model folder (no config.json in it)" in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_folder_that_does_not_exist_is_refused(priml, write, settings: Settings, tmp_path: Path, command: str):
    result = priml(command, write("c.yaml", settings[command]), f"{MODEL[command]}={tmp_path}/none")
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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_folder_that_exists_is_never_overwritten(priml, write, settings: Settings, tmp_path: Path, command: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    result = priml(command, write("c.yaml", settings[command]))
    assert result.code == 2
    assert "run_dir: run already holds a run; " in result.err
    assert "choose another run_dir, or remove the folder" in result.err
    assert f"go on with: priml {command} run" in result.err
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


RESUMABLE = pytest.mark.parametrize("command", ["train", "sft"])


@RESUMABLE
def test_a_folder_that_is_no_run_is_refused(priml, tmp_path: Path, command: str):
    (tmp_path / "empty").mkdir()
    result = priml(command, "empty")
    assert result.code == 2
    assert "empty: not a run folder (no config.yaml in it); give a settings file or a run folder" in result.err


@RESUMABLE
def test_a_resumed_run_takes_no_new_settings(priml, tmp_path: Path, command: str):
    (tmp_path / "run").mkdir()
    result = priml(command, "run", "seed=3")
    assert result.code == 2
    assert "run: found seed=3, but a resumed run keeps its settings; leave it away" in result.err


@RESUMABLE
def test_a_finished_run_is_not_resumed(priml, write, settings: Settings, command: str):
    assert priml(command, write("c.yaml", settings[command])).code == 0
    result = priml(command, "run")
    assert result.code == 2
    assert "run: this run is finished; look at it with: priml report run" in result.err
    other = {"train": "sft", "sft": "train"}[command]
    result = priml(other, "run")
    assert result.code == 2
    assert f"run: found a run of `priml {command}`, need one of `priml {other}`; give another folder" in result.err
    assert priml("report", "run").code == 0


def test_an_interrupted_evaluation_says_that_it_can_go_on(
    priml, write, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MathVerifier, "grade", interrupt)
    monkeypatch.setattr("priml.factories.graders.check_golds", lambda *_: None)  # it grades before the run
    result = priml("eval", write("c.yaml", settings["eval"]))
    assert result.code == 130
    assert "interrupted; no response is lost: go on with: priml eval run" in result.err


def test_an_evaluation_is_graded_again_and_goes_on_by_its_folder_alone(priml, write, settings: Settings):
    path = write("c.yaml", settings["eval"])
    assert "--regrade: found the settings" in priml("eval", "--regrade", path).err
    assert priml("eval", path).code == 0
    assert priml("eval", "run").out == priml("eval", "--regrade", "run").out
    assert "easy" not in priml("eval", "compare", "run", "run").err
    assert "eval compare: found 1 folders, need two" in priml("eval", "compare", "run").err
    assert "an evaluation has no checkpoints" in priml("eval", "run", "from=1").err
    assert "a resumed run keeps its settings" in priml("eval", "run", "samples=3").err


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "priml: found no COMMAND, need one\nRead on with: priml --help"),
        (["train"], "priml train: found no CONFIG, need one\nRead on with: priml train --help"),
        (["trian", "c.yaml"], "did you mean train?"),
        (["prm", "trian", "c.yaml"], "found 'trian', need one of train, score, rank, evaluate; did you mean train?"),
        (["train", "c.yaml", "--fast"], "priml: unrecognized arguments: --fast"),
        (["quickstart", "--seed", "x"], "priml quickstart: argument --seed: invalid int value: 'x'"),
    ],
)
def test_wrong_usage_is_told_in_one_sentence_with_the_next_move(
    priml: Callable[..., Any], arguments: list[str], said: str
):
    result = priml(*arguments)
    assert result.code == 2
    assert said in result.err
    assert "Read on with: priml" in result.err
