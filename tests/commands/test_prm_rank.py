import json
from pathlib import Path
from typing import Any

import pytest

from labelled_rows import PROMPTS, make_rows, write_rows
from priml.commands.prm_rank import run_prm_rank
from priml.config.load import parse_config
from priml.config.prm import PrmRankConfig
from priml.errors import DataError


def settings(data: Path, run_dir: Path, **changes: Any) -> PrmRankConfig:
    tree = {"run_dir": str(run_dir), "data": {"path": str(data)}, "backend": {"device": "cpu"}, **changes}
    return parse_config(PrmRankConfig, tree, where="test")


@pytest.fixture(scope="module")
def ranked(trained: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("rank") / "run"
    table = run_prm_rank(settings(labelled, folder, prm={"model": str(trained / "model")}))
    return folder, table


def test_the_prm_picks_the_right_response_where_the_majority_errs(ranked: tuple[Path, str]):
    found = json.loads((ranked[0] / "rank.json").read_text())
    assert [point["n"] for point in found["curve"]] == [1, 2, 4]
    first, last = found["curve"][0], found["curve"][-1]
    assert first["best_of/min"]["mean"] == pytest.approx(1 / 4)
    assert last["majority"]["mean"] == 0.0  # two of four responses agree on a wrong answer
    assert last["oracle"]["mean"] == 1.0
    assert last["best_of/min"]["mean"] > 0.8
    assert found["above_majority"]["best_of/min"]["low"] > 0.5
    assert found["problems"] == len(PROMPTS)


def test_the_table_and_the_page_say_it(ranked: tuple[Path, str]):
    folder, table = ranked
    assert f"{len(PROMPTS)} problems" in table
    assert "above majority +" in table
    page = (folder / "report.html").read_text()
    assert "majority voting in 0.0" in page
    assert "With 4 responses" in page
    assert (folder / "scores.parquet").is_file()


def test_scores_from_a_file_need_no_model(ranked: tuple[Path, str], tmp_path: Path):
    run_prm_rank(settings(ranked[0] / "scores.parquet", tmp_path / "run"))
    again, first = (json.loads((folder / "rank.json").read_text()) for folder in (tmp_path / "run", ranked[0]))
    assert again == first
    assert (tmp_path / "run" / "report.html").is_file()


def test_without_labels_the_gold_answer_decides(tmp_path: Path):
    rows = [
        {"prompt": "?", "response": f"\\boxed{{{answer}}}", "gold": "1/2", "step_rewards": [reward]}
        for answer, reward in (("0.5", 1.0), ("\\frac{1}{2}", 0.0), ("2", 3.0))
    ]
    run_prm_rank(settings(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"))
    last = json.loads((tmp_path / "run" / "rank.json").read_text())["curve"][-1]
    assert last["pass@1"]["mean"] == pytest.approx(2 / 3)
    assert last["majority"]["mean"] == 1.0  # 0.5 and 1/2 are one answer
    assert last["best_of/sum"]["mean"] == 0.0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "?", "response": "1", "step_rewards": [1.0]}, "neither a label nor a gold answer"),
        ({"prompt": "?", "response": "1", "label": 1}, "1 of 1 responses have no step_rewards; name a PRM"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, row: dict[str, Any], said: str):
    with pytest.raises(DataError, match=said):
        run_prm_rank(settings(write_rows(tmp_path / "rows.jsonl", [row]), tmp_path / "run"))


def test_problems_with_fewer_responses_are_left_out_and_counted(tmp_path: Path, said):
    rows = [row | {"step_rewards": [0.0]} for row in make_rows(PROMPTS[:3])][:-2]
    run_prm_rank(settings(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"))
    assert said[-1] == "1 problems with fewer responses than most are left out"
