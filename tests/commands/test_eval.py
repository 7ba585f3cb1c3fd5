import json

import pyarrow.parquet as pq
import pytest

from priml.commands.eval import run_eval
from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.errors import UsageError

TASK = {"kind": "walk", "length": 2, "states": 4, "operations": 5, "split": "held_out"}


def config(run_dir, model, **settings):
    tree = {
        "run_dir": str(run_dir),
        "model": str(model),
        "data": {"easy/two": {**TASK, "count": 5}, "other": {**TASK, "count": 3}},
        "samples": 4,
        "max_new_tokens": 6,
        "backend": {"device": "cpu"},
        **settings,
    }
    return parse_config(EvalConfig, tree, where="test")


def test_every_set_gets_its_scores_and_its_responses(tmp_path, warm_model):
    cfg = config(tmp_path / "run", warm_model)
    results = run_eval(cfg)
    assert results == json.loads((cfg.run_dir / "eval.json").read_text())
    assert set(results) == {"easy/two", "other"}
    scores = results["easy/two"]
    assert (scores["greedy"]["n"], scores["responses"], set(scores["pass_at"])) == (5, 25, {"1", "2", "4"})
    rows = pq.read_table(cfg.run_dir / "easy-two.parquet").to_pylist()
    assert len(rows) == 25
    assert {row["filter_status"] for row in rows} == {row["advantages"] for row in rows} == {None}
    sampled = rows[5:]
    assert scores["sampled"]["mean"] == pytest.approx(sum(row["outcome"] for row in sampled) / 20)


def test_the_same_seed_gives_the_same_scores(tmp_path, warm_model):
    runs = [run_eval(config(tmp_path / name, warm_model)) for name in "ab"]
    for results in runs:
        for scores in results.values():
            del scores["seconds"]
    assert runs[0] == runs[1]


def test_a_folder_that_holds_a_run_is_refused(tmp_path, warm_model):
    run_eval(config(tmp_path, warm_model))
    with pytest.raises(UsageError, match="already holds a run"):
        run_eval(config(tmp_path, warm_model))
