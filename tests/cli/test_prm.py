"""The four commands as a shell sees them: one after another, on files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelled_rows import PROMPTS, make_pairs, make_rows, write_rows

Write = Callable[[str, dict[str, Any]], Path]


@pytest.fixture
def training(warm_model: Path, tmp_path: Path) -> dict[str, Any]:
    data = write_rows(tmp_path / "labelled.jsonl", make_rows(PROMPTS[:12]))
    return {
        "run_dir": "prm",
        "model": str(warm_model),
        "data": {"path": str(data)},
        "held_out": {"share": 0.3, "every": None},
        "batch": 16,
        "optimizer": {"lr": 1e-2},
        "checkpoint": {"every": 1},
        "backend": {"device": "cpu"},
    }


def test_train_score_rank_and_evaluate_one_after_another(priml, write: Write, training: dict[str, Any], tmp_path: Path):
    done = priml("prm", "train", write("train.yaml", training), "beta=0.5")
    assert done.code == 0, done.err
    assert "held out: accuracy" in done.out
    assert "model: prm/model\nreport: priml report prm\n" in done.out
    use = {"prm": {"model": "prm/model"}, "backend": {"device": "cpu"}}

    done = priml("prm", "score", write("score.yaml", use | {"run_dir": "scores", "data": training["data"]}))
    assert done.code == 0, done.err
    assert "48 responses, 2.0 steps on average" in done.out
    assert done.out.endswith("written: scores/scores.parquet\npage: scores/report.html\n")

    ranking = {"run_dir": "rank", "data": {"path": "scores/scores.parquet"}, "backend": {"device": "cpu"}}
    done = priml("prm", "rank", write("rank.yaml", ranking))
    assert done.code == 0, done.err
    assert "12 problems; share answered right" in done.out

    rows = [{"id": f"own-{label}", "problem": PROMPTS[0], "steps": ["1", "2"], "label": label} for label in (1, -1)]
    sets = {"own": {"kind": "process_bench", "path": str(write_rows(tmp_path / "steps.jsonl", rows))}}
    done = priml("prm", "evaluate", write("evaluate.yaml", use | {"run_dir": "evaluated", "data": sets}))
    assert done.code == 0, done.err
    assert "own*" in done.out
    assert done.out.endswith("written: evaluated/evaluation.json\n")


def test_a_run_folder_is_resumed_and_keeps_its_settings(priml, write: Write, training: dict[str, Any], tmp_path: Path):
    assert priml("prm", "train", write("train.yaml", training)).code == 0
    assert priml("prm", "train", "prm").err.startswith("priml: prm: this run is finished")
    (tmp_path / "prm" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "prm" / "model")
    assert priml("prm", "train", "prm", "epochs=2").code == 2
    done = priml("prm", "train", "prm")
    assert done.code == 0, done.err
    assert (tmp_path / "prm" / "model" / "implicit_prm.json").is_file()


def test_a_finished_folder_of_another_command_is_not_resumed(priml, write: Write, training: dict[str, Any]):
    assert priml("prm", "train", write("train.yaml", training)).code == 0
    done = priml("train", "prm")
    assert done.code == 2
    assert "a run of `priml prm train`" in done.err


def test_report_writes_the_page_of_each_kind_of_folder(priml, write: Write, training: dict[str, Any], tmp_path: Path):
    assert priml("prm", "train", write("train.yaml", training)).code == 0
    assert priml("report", "prm").code == 0
    assert '"title":"Does it tell right from wrong?"' in (tmp_path / "prm" / "report.html").read_text()
    score = {"run_dir": "scores", "prm": {"model": "prm/model"}, "data": training["data"], "backend": {"device": "cpu"}}
    assert priml("prm", "score", write("score.yaml", score)).code == 0
    (tmp_path / "scores" / "report.html").unlink()
    assert priml("report", "scores").code == 0
    assert "responses of 2.0 steps on average" in (tmp_path / "scores" / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss.kind=orpo"], "loss.kind: found 'orpo', need one of ce, dpo, kto, nca"),
        (["loss.kind=ce", "loss.desirable_weight=2"], "loss.desirable_weight: not a key of this kind"),
        (["beta=-1"], "beta: found -1"),
        (["loss.kind=kto", "batch=1"], "batch: kto compares each response with responses to other prompts"),
        (["data.path=none.jsonl"], "no such data file: none.jsonl"),
        (["model=none/here/at/all"], "no such model folder"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_2(
    priml, write: Write, training: dict[str, Any], tmp_path: Path, overrides: list[str], said: str
):
    done = priml("prm", "train", write("train.yaml", training), *overrides)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not (tmp_path / "prm" / "config.yaml").exists()


def test_pairs_and_a_loss_for_labels_do_not_fit(priml, write: Write, training: dict[str, Any], tmp_path: Path):
    training["data"] = {"path": str(write_rows(tmp_path / "pairs.jsonl", make_pairs(PROMPTS[:4])))}
    done = priml("prm", "train", write("train.yaml", training))
    assert done.code == 2
    assert "set loss.kind: dpo or nca, or give rows with a label" in done.err


def test_the_bad_row_is_named_by_its_number(priml, write: Write, training: dict[str, Any], tmp_path: Path):
    rows = [*make_rows(PROMPTS[:1]), {"prompt": "1+1=", "response": "2"}]
    training["data"] = {"path": str(write_rows(tmp_path / "rows.jsonl", rows))}
    done = priml("prm", "train", write("train.yaml", training))
    assert done.code == 2
    assert f"{tmp_path}/rows.jsonl:5: no label: needed true, false or a number from 0 to 1" in done.err


def test_without_an_action_the_four_are_named(priml):
    done = priml("prm")
    assert done.code == 2
    assert "ACTION" in done.err
    helped = priml("prm", "--help")
    assert helped.code == 0
    assert all(action in helped.out for action in ("train", "score", "rank", "evaluate"))


def test_the_summary_says_beta_and_what_was_held_out(priml, write: Write, training: dict[str, Any], tmp_path: Path):
    assert priml("prm", "train", write("train.yaml", training), "held_out=null", "beta=auto").code == 0
    summary = json.loads((tmp_path / "prm" / "summary.json").read_text())
    assert summary["held_out"] == {}
    assert summary["beta"] == pytest.approx(50 / 7)
