import json
import shutil

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from priml.commands.eval import run_eval
from priml.config.eval import EvalConfig
from priml.config.load import parse_config
from priml.errors import RunError, UsageError
from priml.evaluate.responses import ResponseStore
from priml.evaluate.tables import evaluation_table

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
    assert runs[0] == runs[1]


def test_a_folder_that_holds_a_run_is_refused(tmp_path, warm_model):
    run_eval(config(tmp_path, warm_model))
    with pytest.raises(UsageError, match="already holds a run"):
        run_eval(config(tmp_path, warm_model))


def test_a_run_goes_on_without_sampling_anything_twice(tmp_path, warm_model, monkeypatch):
    whole = run_eval(config(tmp_path / "whole", warm_model))
    add, added, cuts = ResponseStore.add, [], [26, 7, 3, 0]  # of 40; the first set has 25

    def dies(self, decoding, prompt, trajectory):
        if cuts and len(added) == cuts[-1]:
            cuts.pop()
            raise KeyboardInterrupt
        added.append((self, decoding, prompt.problem.id, trajectory.sample))
        add(self, decoding, prompt, trajectory)

    monkeypatch.setattr(ResponseStore, "add", dies)
    folder = tmp_path / "cut"
    while cuts:
        with pytest.raises(KeyboardInterrupt):
            run_eval(folder if folder.exists() else config(folder, warm_model))
    assert run_eval(folder) == whole == json.loads((folder / "eval.json").read_text())
    assert len(added) == len({(*one[1:], one[0]._whole) for one in added}) == 40
    for name in ("easy-two.parquet", "other.parquet"):
        # Log-probs depend on the batch in their last digits.
        tables = [pq.read_table(path / name).drop_columns("sampler_logprobs") for path in (folder, tmp_path / "whole")]
        assert tables[0].equals(tables[1])
    assert not list(folder.glob("*.jsonl"))
    assert run_eval(folder, regrade=True) == whole
    assert len(added) == 40, "nothing was sampled again"


def test_other_weights_are_not_mixed_in(tmp_path, warm_model):
    model = tmp_path / "model"
    shutil.copytree(warm_model, model)
    run_eval(config(tmp_path / "run", model))
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="initial weights"):
        run_eval(tmp_path / "run")


def test_grading_again_samples_nothing(tmp_path, warm_model, monkeypatch):
    monkeypatch.setattr(ResponseStore, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_eval(config(tmp_path / "run", warm_model))
    with pytest.raises(UsageError, match=r"not sampled yet.*priml eval"):
        run_eval(tmp_path / "run", regrade=True)


def test_too_many_undecided_responses_fail_the_command_after_all_is_written(tmp_path, warm_model):
    judge, marker = tmp_path / "judge.py", tmp_path / "mended"
    judge.write_text(
        "import pathlib\n"
        "def grade(problem, response):\n"
        f"    assert pathlib.Path({str(marker)!r}).exists() or sum(map(ord, problem.prompt)) % 2\n"
        "    return True\n"
    )
    cfg = config(tmp_path / "run", warm_model, verify={"kind": "custom", "function": f"{judge}:grade"})
    with pytest.raises(
        RunError, match=r"are undecided, and max_undecided is 0.01; ask for them again with: priml eval"
    ):
        run_eval(cfg)
    assert (cfg.run_dir / "eval.json").is_file()
    marker.touch()
    assert run_eval(cfg.run_dir)["other"]["undecided"] == 0, "those are asked for again"


def test_the_table_shows_every_set_and_published_rows_as_such():
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    counts = {"truncated": 3, "no_answer": 6, "undecided": 0, "responses": 30, "tokens": {"mean": 812.4}}
    one = counts | {"greedy": score, "decoding": {"greedy": True}}
    sampled = counts | {"sampled": score, "pass_at": {"4": score}, "decoding": {"samples": 4}}
    found = evaluation_table({"aime24": one, "mine": sampled}, {"aime24": {"GPT-4o": 9.3}}).splitlines()
    assert found[2] == "| aime24 | 30 | 50.0 [40.0, 60.0] | – | – | – | – | 10.0 | 20.0 | 0.0 | 812 |"
    assert found[3] == "| mine | 30 | – | 50.0 [40.0, 60.0] | 4 | 50.0 [40.0, 60.0] | – | 10.0 | 20.0 | 0.0 | 812 |"
    assert "| this run | 50.0 | 50.0 |" in found
    assert "| GPT-4o (published) | 9.3 | 9.3 |" in found
