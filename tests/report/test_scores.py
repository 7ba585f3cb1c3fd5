import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priml.models.tiny import character_tokenizer
from priml.report.scores import pick, write_scores_report

TOKENIZER = character_tokenizer()


def row(problem: str, text: str, outcome: float | None) -> dict[str, Any]:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return {
        "problem_id": problem,
        "source": "test",
        "prompt": "<b>1+1?</b>",
        "response": text,
        "response_ids": ids,
        "outcome": outcome,
        "gold": "2",
        "step_ends": [1, len(ids) - 1],
        "prm_logprobs": [-1.0] * len(ids),
        "ref_logprobs": [-2.0] * len(ids),
        "process_rewards": [0.5] * len(ids),
        "step_rewards": [1.0, -3.0],
    }


def accuracy(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row("a", "1\n2", 1.0), row("a", "1\n3", 0.0), row("b", "</script>\n4", None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    summary = {"prm": "runs/prm/model", "reference": "base", "beta": 0.05, "responses": 3, "steps_per_response": 2.0}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"auc": 0.75}))
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_shows_tokens_with_their_rewards_and_those_of_their_steps(folder: Path):
    data = page_data(write_scores_report(folder, shown=10))
    assert data["headline"] == "3 responses of 2.0 steps on average"
    assert data["details"] == ["Their summed rewards tell right from wrong with an AUC of 0.750."]
    assert ["Reference", "base"] in data["facts"]
    first = data["rollouts"]["responses"][0]
    assert first["pieces"] == ["1", "\n", "2"]
    assert first["numbers"]["process_rewards"] == [0.5, 0.5, 0.5]
    assert first["numbers"]["step_rewards"] == [1.0, 1.0, -3.0]
    assert data["rollouts"]["limits"] == {"process_rewards": 0.5, "step_rewards": 3.0}
    assert [r["texts"]["verdict"] for r in data["rollouts"]["responses"]] == ["correct", "wrong", "unlabelled"]


def test_what_a_model_wrote_stays_text(folder: Path):
    text = write_scores_report(folder, shown=10).read_text()
    assert "</script>\\n4" not in text
    assert "<b>1+1?" not in text


def test_a_ranking_brings_curves_over_n_and_a_table(folder: Path):
    ways = ("min", "mean", "sum", "last")
    methods = ["pass@1", "majority", "oracle", *(f"{kind}/{how}" for kind in ("best_of", "vote") for how in ways)]
    curve = [{"n": n} | {m: accuracy(0.2 + n / 10 + 0.01 * i) for i, m in enumerate(methods)} for n in (1, 2, 4)]
    ranking = {"n": 4, "problems": 10, "curve": curve, "above_majority": {m: accuracy(0.1) for m in methods[3:]}}
    (folder / "rank.json").write_text(json.dumps(ranking))
    data = page_data(write_scores_report(folder, shown=10))
    assert data["headline"].startswith("Best-of-4 by the last of step rewards is right in 66.0")
    best, votes = data["sections"][0]["charts"]
    assert best["steps"] == votes["steps"] == [1, 2, 4]
    assert best["axis"] == "n ="
    assert {s["label"] for s in best["series"]} >= {"best by min", "majority vote", "oracle"}
    (table,) = data["tables"]
    assert table["rows"][1][:3] == ["majority", "61.0\N{NO-BREAK SPACE}%", "51.0 to 71.0"]
    assert table["rows"][3][3] == "+10.0 (+0.0 to +20.0)"


def test_a_ranking_of_rewards_from_elsewhere_has_no_tokens(folder: Path):
    (folder / "scores.parquet").unlink()
    assert page_data(write_scores_report(folder, shown=10))["rollouts"]["responses"] == []


def test_problems_answered_right_and_wrong_come_first_and_both_kinds_are_shown():
    outcomes = [("a", 1.0), ("a", 1.0), ("b", None), ("c", 0.0), ("c", 0.0), ("c", 1.0), ("c", 0.0)]
    rows = [{"problem_id": problem, "outcome": outcome} for problem, outcome in outcomes]
    assert pick(rows, 4) == [5, 6, 0, 1]
    assert pick(rows, 100) == [5, 6, 3, 4, 0, 1, 2]
