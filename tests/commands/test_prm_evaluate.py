import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from labelled_rows import PROMPTS, write_rows
from priml.commands.prm_evaluate import run_prm_evaluate
from priml.config.load import parse_config
from priml.config.prm import PrmEvaluateConfig
from priml.errors import ConfigError, DataError

PROCESS = Path(__file__).resolve().parents[3] / "shared" / "data" / "process"
MATH = Path(__file__).resolve().parents[3] / "shared" / "data" / "math"


def settings(trained: Path, run_dir: Path, data: dict[str, Any], **changes: Any) -> PrmEvaluateConfig:
    tree = {
        "run_dir": str(run_dir),
        "prm": {"model": str(trained / "model")},
        "data": data,
        "step_list": {"separator": "\n"},
        "backend": {"device": "cpu"},
        **changes,
    }
    return parse_config(PrmEvaluateConfig, tree, where="test")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The first line is wrong where it is a 3; the PRM has learnt that from labels of whole responses."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [
        {"id": f"gsm8k-{i}", "problem": prompt, "steps": [first, "2\\boxed{2}"], "label": -1 if first == "1" else 0}
        for i, (prompt, first) in enumerate((p, f) for p in PROMPTS[:10] for f in "13")
    ]
    modified = {"classification": "redundency", "modified_question": PROMPTS[0], "original_question": PROMPTS[0]}
    bench = [
        modified
        | {
            "idx": str(i),
            "modified_process": ["3", "2\\boxed{2}"],
            "original_process": ["1", "2\\boxed{2}"],
            "error_steps": [1],
        }
        for i in range(3)
    ]
    return {
        "one": {"kind": "process_bench", "path": str(write_rows(folder / "a.jsonl", rows))},
        "two": {"kind": "process_bench", "path": str(write_rows(folder / "b.jsonl", rows[:8]))},
        "bench": {"kind": "prm_bench", "path": str(write_rows(folder / "c.jsonl", bench))},
    }


@pytest.mark.parametrize("step_score", ["reward", "prefix"])
def test_a_prm_that_knows_finds_the_first_wrong_step(
    trained: Path, tmp_path: Path, sets: dict[str, Any], step_score: str
):
    table = run_prm_evaluate(settings(trained, tmp_path / "run", sets, step_score=step_score))
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["threshold"]["chosen_on"] == "one"
    assert found["process_bench"]["one"]["f1"] > 0.8
    assert found["process_bench"]["two"]["f1"] > 0.8
    assert found["prm_bench"]["bench"]["total"]["solutions"] == 3
    assert "chosen on one, whose own number it flatters" in table
    assert "one*" in table
    assert "PRMScore" in table


def test_a_given_threshold_is_used_as_it_is(trained: Path, tmp_path: Path, sets: dict[str, Any]):
    threshold = {"kind": "fixed", "value": -1e9}
    table = run_prm_evaluate(settings(trained, tmp_path / "run", sets, threshold=threshold))
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["process_bench"]["one"]["correct"] == 1.0
    assert found["process_bench"]["one"]["erroneous"] == found["process_bench"]["one"]["f1"] == 0.0
    assert "(given)" in table


def test_notes_on_contamination_are_printed_with_the_numbers(trained: Path, tmp_path: Path, sets: dict[str, Any]):
    seen = write_rows(tmp_path / "train.jsonl", [{"prompt": prompt, "response": "x"} for prompt in PROMPTS[:4]])
    cfg = settings(trained, tmp_path / "run", {"one": sets["one"]}, training={"mine": str(seen)})
    table = run_prm_evaluate(cfg)
    assert "note: one: 4 of 10 distinct problems stand in mine, by exact text" in table
    assert "note: one: All problems of ProcessBench-GSM8K are from the GSM8K test set." in table
    again = run_prm_evaluate(settings(trained, tmp_path / "other", {"one": sets["one"]}))
    assert "No training file was given" in again


def test_a_threshold_is_not_chosen_on_solutions_of_one_kind(trained: Path, tmp_path: Path):
    rows = [{"problem": PROMPTS[0], "steps": ["1", "2"], "label": 0}] * 3
    data = {"own": {"kind": "process_bench", "path": str(write_rows(tmp_path / "rows.jsonl", rows))}}
    with pytest.raises(DataError, match="own has 3 erroneous and 0 correct solutions"):
        run_prm_evaluate(settings(trained, tmp_path / "run", data))
    threshold = {"kind": "fixed", "value": 0.0}
    run_prm_evaluate(settings(trained, tmp_path / "fixed", data, threshold=threshold))


def test_the_step_scores_of_each_set_are_kept(trained: Path, tmp_path: Path, sets: dict[str, Any]):
    run_prm_evaluate(settings(trained, tmp_path / "run", {"a/b": sets["two"]}))
    rows = pq.read_table(tmp_path / "run" / "a-b.parquet").to_pylist()
    assert [len(row["step_rewards"]) for row in rows] == [2] * 8


def test_a_threshold_from_a_set_that_is_not_there_is_refused(trained: Path, tmp_path: Path, sets: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"threshold\.data: found 'three', need one of the sets in data: one, two"):
        settings(trained, tmp_path / "run", sets, threshold={"kind": "best_on", "data": "three"})


@pytest.mark.slow
@pytest.mark.skipif(not PROCESS.is_dir(), reason="the process labels are not on this machine")
def test_the_published_files_go_through_from_end_to_end(trained: Path, tmp_path: Path):
    data = {
        "gsm8k": {"kind": "process_bench", "path": str(PROCESS / "processbench_gsm8k.jsonl.gz"), "limit": 60},
        "prmbench": {"kind": "prm_bench", "path": str(PROCESS / "prmbench.jsonl.gz"), "limit": 60},
    }
    training = {"math_train": str(MATH / "math_train_12k.jsonl.gz")}
    cfg = settings(trained, tmp_path / "run", data, training=training, max_response_tokens=4000)
    table = run_prm_evaluate(cfg)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 0 <= found["average_f1"] <= 1
    assert "distinct problems stand in math_train" in table
